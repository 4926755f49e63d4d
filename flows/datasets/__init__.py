"""Datasets by command: collect, gather, import and export."""
