"""`refine` without a simulator: candidates chosen and judged by estimates from the log."""
