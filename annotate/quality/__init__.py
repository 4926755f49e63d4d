"""The health of labels before any training: where they are, whether they are consistent, calibrated and worth it."""
