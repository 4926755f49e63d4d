"""The table of rounds, for the migration that makes it: the policies before and after each, and what it gained."""

from __future__ import annotations

ROUNDS = """
CREATE TABLE rounds (
    series_id VARCHAR NOT NULL,
    round INTEGER NOT NULL,
    env_id VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    run_ids VARCHAR[] NOT NULL,
    comparison_id VARCHAR NOT NULL,
    baseline_id VARCHAR NOT NULL,
    policy_id VARCHAR NOT NULL,
    accepted BOOLEAN NOT NULL,
    gain DOUBLE NOT NULL,
    low DOUBLE NOT NULL,
    high DOUBLE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (series_id, round)
);
"""
