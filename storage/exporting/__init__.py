"""Datasets and tables as files for other tools."""
