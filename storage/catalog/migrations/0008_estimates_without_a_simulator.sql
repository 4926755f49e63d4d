-- An estimate is never a row of evaluations.
CREATE TABLE estimates (
    estimate_id VARCHAR PRIMARY KEY,
    comparison_id VARCHAR NOT NULL,
    policy_id VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    mode VARCHAR NOT NULL CHECK (mode IN ('greedy', 'sampled')),
    gamma DOUBLE NOT NULL,
    episodes INTEGER NOT NULL,
    refits DOUBLE[] NOT NULL,
    return_ DOUBLE NOT NULL,
    low DOUBLE NOT NULL,
    high DOUBLE NOT NULL,
    support DOUBLE,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
ALTER TABLE comparisons ADD COLUMN basis VARCHAR DEFAULT 'played';
ALTER TABLE comparisons ALTER COLUMN env_id DROP NOT NULL;
ALTER TABLE candidates ALTER COLUMN return_ DROP NOT NULL;
ALTER TABLE candidates ADD COLUMN consistency DOUBLE;
ALTER TABLE candidates ADD COLUMN agreement DOUBLE;
