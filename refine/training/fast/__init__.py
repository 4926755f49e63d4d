"""The same training for all betas at once, without d3rlpy's loop."""
