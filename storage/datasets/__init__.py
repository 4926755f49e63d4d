"""Rollouts on the disk: columns, shards, writers, readers and the registry of datasets."""
