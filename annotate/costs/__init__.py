"""Prices of models and what a run is going to cost."""
