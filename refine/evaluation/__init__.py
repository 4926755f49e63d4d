"""Evidence: the gate's statistics, estimates without a simulator, held-out labels."""
