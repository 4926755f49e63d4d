-- The tables with which every catalog begins; later steps change them. Columns are a contract.
CREATE TABLE datasets (
    dataset_id VARCHAR PRIMARY KEY,
    source VARCHAR NOT NULL,
    env_id VARCHAR,
    env_kwargs JSON,
    policy VARCHAR,
    policy_sha256 VARCHAR,
    policy_mode VARCHAR,
    policy_output VARCHAR,
    observation_space JSON NOT NULL,
    action_space JSON NOT NULL,
    component_names VARCHAR[] NOT NULL,
    action_names VARCHAR[] NOT NULL,
    episodes BIGINT NOT NULL,
    steps BIGINT NOT NULL,
    manifest_sha256 VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE TABLE episodes (
    dataset_id VARCHAR NOT NULL,
    episode_id BIGINT NOT NULL,
    seed BIGINT,
    length INTEGER NOT NULL,
    return_ DOUBLE NOT NULL,
    terminated BOOLEAN NOT NULL,
    truncated BOOLEAN NOT NULL,
    shard VARCHAR NOT NULL,
    PRIMARY KEY (dataset_id, episode_id)
);
CREATE TABLE annotation_runs (
    run_id VARCHAR PRIMARY KEY,
    dataset_id VARCHAR NOT NULL,
    provider VARCHAR NOT NULL,
    model VARCHAR,
    prompt_version VARCHAR,
    card_sha256 VARCHAR,
    config JSON,
    state VARCHAR NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done')),
    recorded BOOLEAN,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    finished_at TIMESTAMPTZ
);
CREATE TABLE requests (
    request_id VARCHAR PRIMARY KEY,
    kind VARCHAR NOT NULL CHECK (kind IN ('mark', 'identify', 'suggest')),
    model VARCHAR,
    prompt_version VARCHAR,
    body JSON,
    state VARCHAR NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'in_batch', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    input_tokens_estimate INTEGER,
    error VARCHAR,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at TIMESTAMPTZ
);
CREATE TABLE run_requests (
    run_id VARCHAR NOT NULL,
    request_id VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    episode_id BIGINT,
    sample INTEGER,
    PRIMARY KEY (run_id, request_id)
);
CREATE TABLE batches (
    batch_id VARCHAR PRIMARY KEY,
    provider VARCHAR NOT NULL,
    remote_id VARCHAR,
    state VARCHAR NOT NULL DEFAULT 'intent' CHECK (state IN ('intent', 'submitted', 'ingested', 'abandoned')),
    requests INTEGER NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    submitted_at TIMESTAMPTZ,
    ended_at TIMESTAMPTZ
);
CREATE TABLE batch_items (
    batch_id VARCHAR NOT NULL,
    request_id VARCHAR NOT NULL,
    outcome VARCHAR,
    PRIMARY KEY (batch_id, request_id)
);
CREATE TABLE responses (
    response_id VARCHAR PRIMARY KEY,
    request_id VARCHAR NOT NULL,
    batch_id VARCHAR,
    provider VARCHAR,
    model VARCHAR,
    file VARCHAR NOT NULL,
    line INTEGER NOT NULL,
    stop_reason VARCHAR,
    input_tokens BIGINT,
    cache_write_tokens BIGINT,
    cache_read_tokens BIGINT,
    output_tokens BIGINT,
    cost_usd DOUBLE,
    recorded BOOLEAN,
    provenance JSON,
    received_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE TABLE annotations (
    annotation_id VARCHAR PRIMARY KEY,
    run_id VARCHAR NOT NULL,
    request_id VARCHAR,
    dataset_id VARCHAR NOT NULL,
    episode_id BIGINT NOT NULL,
    step INTEGER NOT NULL,
    critical BOOLEAN NOT NULL,
    suggested_action DOUBLE[],
    suggested_label VARCHAR,
    implicit_reward DOUBLE CHECK (implicit_reward BETWEEN -1 AND 1),
    confidence DOUBLE CHECK (confidence BETWEEN 0 AND 1),
    rationale VARCHAR,
    model VARCHAR NOT NULL,
    prompt_version VARCHAR,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE TABLE rejections (
    rejection_id VARCHAR PRIMARY KEY,
    run_id VARCHAR NOT NULL,
    request_id VARCHAR,
    dataset_id VARCHAR NOT NULL,
    episode_id BIGINT,
    step INTEGER,
    reason VARCHAR NOT NULL,
    detail VARCHAR,
    raw VARCHAR,
    model VARCHAR,
    prompt_version VARCHAR,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE TABLE policies (
    policy_id VARCHAR PRIMARY KEY,
    kind VARCHAR NOT NULL CHECK (kind IN ('baseline', 'refined')),
    env_id VARCHAR,
    sha256 VARCHAR NOT NULL,
    dataset_id VARCHAR,
    baseline_id VARCHAR,
    run_ids VARCHAR[],
    config JSON,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE TABLE refinements (
    refinement_id VARCHAR PRIMARY KEY,
    comparison_id VARCHAR,
    dataset_id VARCHAR NOT NULL,
    baseline_id VARCHAR,
    arm VARCHAR NOT NULL,
    mode VARCHAR,
    config JSON,
    run_ids VARCHAR[],
    labels INTEGER,
    seed BIGINT,
    state VARCHAR NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done')),
    accepted BOOLEAN,
    policy_id VARCHAR,
    reason VARCHAR,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    finished_at TIMESTAMPTZ
);
CREATE TABLE comparisons (
    comparison_id VARCHAR PRIMARY KEY,
    dataset_id VARCHAR NOT NULL,
    env_id VARCHAR NOT NULL,
    baseline_id VARCHAR NOT NULL,
    policy_id VARCHAR NOT NULL,
    recipe VARCHAR NOT NULL,
    accepted BOOLEAN NOT NULL,
    reason VARCHAR NOT NULL,
    better BOOLEAN NOT NULL,
    better_reason VARCHAR NOT NULL,
    credit BOOLEAN NOT NULL,
    credit_reason VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE TABLE arms (
    comparison_id VARCHAR NOT NULL,
    arm VARCHAR NOT NULL,
    mode VARCHAR NOT NULL CHECK (mode IN ('greedy', 'sampled')),
    labels INTEGER NOT NULL,
    draws INTEGER NOT NULL,
    accepted INTEGER NOT NULL,
    episodes INTEGER NOT NULL,
    return_ DOUBLE NOT NULL,
    low DOUBLE NOT NULL,
    high DOUBLE NOT NULL,
    PRIMARY KEY (comparison_id, arm, mode)
);
CREATE TABLE candidates (
    refinement_id VARCHAR NOT NULL,
    number INTEGER NOT NULL,
    policy_id VARCHAR NOT NULL,
    step INTEGER NOT NULL,
    beta DOUBLE NOT NULL,
    return_ DOUBLE NOT NULL,
    chosen BOOLEAN NOT NULL,
    PRIMARY KEY (refinement_id, number)
);
CREATE TABLE evaluations (
    evaluation_id VARCHAR PRIMARY KEY,
    policy_id VARCHAR,
    refinement_id VARCHAR,
    env_id VARCHAR,
    env_kwargs JSON,
    purpose VARCHAR NOT NULL CHECK (purpose IN ('select', 'accept', 'report', 'evaluate')),
    mode VARCHAR NOT NULL CHECK (mode IN ('greedy', 'sampled')),
    first_seed BIGINT,
    episodes INTEGER NOT NULL,
    returns DOUBLE[] NOT NULL,
    return_ DOUBLE NOT NULL,
    low DOUBLE,
    high DOUBLE,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE TABLE replays (
    replay_id VARCHAR PRIMARY KEY,
    dataset_id VARCHAR NOT NULL,
    episode_id BIGINT NOT NULL,
    exact BOOLEAN NOT NULL,
    steps INTEGER NOT NULL,
    first_mismatch INTEGER,
    detail VARCHAR,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
