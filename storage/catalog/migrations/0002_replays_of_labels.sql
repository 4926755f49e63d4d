-- What replays measured about single labels.
CREATE TABLE label_replays (
    label_replay_id VARCHAR PRIMARY KEY,
    annotation_id VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    episode_id BIGINT NOT NULL,
    step INTEGER NOT NULL,
    policy_sha256 VARCHAR NOT NULL,
    mode VARCHAR NOT NULL CHECK (mode IN ('greedy', 'sampled')),
    continuations INTEGER NOT NULL,
    exact BOOLEAN NOT NULL,
    suggested_return DOUBLE,
    logged_return DOUBLE,
    advantage DOUBLE,
    advantages DOUBLE[],
    standard_error DOUBLE,
    environment_steps BIGINT NOT NULL,
    detail VARCHAR,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
