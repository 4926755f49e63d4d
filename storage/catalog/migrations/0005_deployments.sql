-- The datasets of deployments, and which policy they have in force since when. `origin` is `file:SHA256`,
-- `collect:NUMBER` or `dataset:ID`. A row of `promotions` is a decision: its `policy_id` is in force from then on, and
-- is another one than before only if `promoted`.
CREATE TABLE intakes (
    deployment VARCHAR NOT NULL,
    origin VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (deployment, origin)
);
CREATE TABLE promotions (
    deployment VARCHAR NOT NULL,
    number INTEGER NOT NULL,
    comparison_id VARCHAR NOT NULL,
    policy_id VARCHAR NOT NULL,
    previous_id VARCHAR,
    promoted BOOLEAN NOT NULL,
    labels INTEGER NOT NULL,
    reason VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (deployment, number)
);
