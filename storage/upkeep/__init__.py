"""Whether a store is sound, and what may be thrown away."""
