-- `position` is the place in the annotator's list, which is read from its beginning; a null in `suggested_action` is a
-- dimension that stays as it was logged. A CHECK of a table cannot be changed, so `requests` is written anew.
CREATE TABLE rules (
    rule_id VARCHAR PRIMARY KEY,
    run_id VARCHAR NOT NULL,
    request_id VARCHAR,
    dataset_id VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    predicate VARCHAR NOT NULL,
    suggested_action DOUBLE[] NOT NULL,
    suggested_label VARCHAR NOT NULL,
    confidence DOUBLE CHECK (confidence BETWEEN 0 AND 1),
    rationale VARCHAR,
    model VARCHAR NOT NULL,
    prompt_version VARCHAR,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE TEMP TABLE requests_before AS SELECT * FROM requests;
DROP TABLE requests;
CREATE TABLE requests (
    request_id VARCHAR PRIMARY KEY,
    kind VARCHAR NOT NULL CHECK (kind IN ('mark', 'identify', 'suggest', 'rules')),
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
INSERT INTO requests BY NAME SELECT * FROM requests_before;
DROP TABLE requests_before;
