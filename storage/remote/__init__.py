"""Stores for more than one machine: snapshots, push and pull."""
