"""Training from files alone: buffers, losses and the two engines."""
