"""Rows that were recorded elsewhere: read, checked as a whole, and entered."""
