"""Candidates, arms and verdicts: refine, ablate, rounds and evaluate."""
