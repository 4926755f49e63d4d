"""Asking for labels, measuring them and judging their quality."""
