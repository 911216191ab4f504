"""From what a user has to examples: files, folders and the Hub are read strictly, and every row is accounted for.
Knows no model."""
