"""Training with d3rlpy's own loop and algorithms."""
