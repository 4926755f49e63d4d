"""Refinement without a simulator: everything is called an estimate."""
