-- The policies before and after each round, and what it gained.
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
