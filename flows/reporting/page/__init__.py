"""The page: facts in words, charts and tables, joined into one file."""
