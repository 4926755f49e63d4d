-- What was pooled, and the comparisons behind it.
CREATE TABLE ablations (
    ablation_id VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    env_id VARCHAR NOT NULL,
    recipe VARCHAR NOT NULL,
    arm VARCHAR NOT NULL,
    mode VARCHAR NOT NULL CHECK (mode IN ('greedy', 'sampled')),
    labels INTEGER NOT NULL,
    seeds INTEGER NOT NULL,
    draws INTEGER NOT NULL,
    accepted INTEGER NOT NULL,
    episodes INTEGER NOT NULL,
    return_ DOUBLE NOT NULL,
    low DOUBLE NOT NULL,
    high DOUBLE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (ablation_id, recipe, arm, mode)
);
CREATE TABLE ablation_comparisons (
    ablation_id VARCHAR NOT NULL,
    recipe VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    comparison_id VARCHAR NOT NULL,
    PRIMARY KEY (ablation_id, recipe, seed)
);
