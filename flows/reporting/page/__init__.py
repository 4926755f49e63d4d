"""The page: texts, charts and tables, joined into one file."""
