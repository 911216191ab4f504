"""What makes an edit trustworthy: versions and how they come into force, paired comparison, exports. Runs without
ray."""
