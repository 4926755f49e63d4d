"""Cards: what the numbers of an environment mean, in words that a program can check."""
