"""The published protocol on a suite of tasks, and its tables."""
