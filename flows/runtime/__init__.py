"""Processes, runners and Prefect's server."""
