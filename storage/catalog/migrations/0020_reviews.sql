-- What people say of labels and rules, or of states without either (a gold set). A queue is what one file asked about;
-- an answer that is corrected later stays here, and the view `current_reviews` has the one in force.
CREATE TABLE review_queues (
    queue_id VARCHAR PRIMARY KEY,
    dataset_id VARCHAR NOT NULL,
    kind VARCHAR NOT NULL CHECK (kind IN ('labels', 'gold', 'rules')),
    run_ids VARCHAR[] NOT NULL,
    config JSON NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE TABLE review_items (
    queue_id VARCHAR NOT NULL,
    item INTEGER NOT NULL,
    episode_id BIGINT,
    step INTEGER,
    annotation_id VARCHAR,
    rule_id VARCHAR,
    PRIMARY KEY (queue_id, item)
);
CREATE TABLE reviews (
    review_id VARCHAR PRIMARY KEY,
    run_id VARCHAR NOT NULL,
    queue_id VARCHAR NOT NULL,
    item INTEGER NOT NULL,
    model VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    episode_id BIGINT,
    step INTEGER,
    annotation_id VARCHAR,
    rule_id VARCHAR,
    verdict VARCHAR NOT NULL CHECK (verdict IN ('accept', 'correct', 'reject', 'unsure', 'answer', 'withdrawn')),
    critical BOOLEAN,
    suggested_action DOUBLE[],
    suggested_label VARCHAR,
    note VARCHAR,
    blind BOOLEAN,
    answered_at TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
