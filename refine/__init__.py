"""A better policy from files alone: buffers, losses, d3rlpy algorithms and the statistics of the gate.

It never imports gymnasium and never asks a language model.
"""
