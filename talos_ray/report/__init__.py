"""The report of a run: one HTML page that opens offline, and the same numbers as CSV."""
