"""Annotation runs: planned, asked one by one or in batches, taken up again after a crash."""
