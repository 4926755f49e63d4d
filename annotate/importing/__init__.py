"""Labels and rules that were made elsewhere."""
