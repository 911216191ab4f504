"""Answers over HTTP: one base in memory, in which versions and single edits take turns. All but `deploy` works without
Ray."""
