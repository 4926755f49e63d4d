-- A rule's action may be a formula for each dimension (NULL where the number in `suggested_action` counts), and says
-- whether its states are critical. `rule_lists` has one row per list: the first version of a list has no parent; its
-- `potential` is an expression for how good a state is. `terms` are the named expressions of a list, in their order.
ALTER TABLE rules ADD COLUMN formulas VARCHAR[];
ALTER TABLE rules ADD COLUMN critical BOOLEAN;
CREATE TABLE rule_lists (
    list_id VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    request_id VARCHAR,
    dataset_id VARCHAR NOT NULL,
    parent_id VARCHAR,
    assessment VARCHAR,
    potential VARCHAR,
    model VARCHAR NOT NULL,
    prompt_version VARCHAR,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, list_id)
);
INSERT INTO rule_lists BY NAME
SELECT DISTINCT coalesce(request_id, run_id) AS list_id, run_id, request_id, dataset_id, any_value(model) AS model,
    any_value(prompt_version) AS prompt_version, min(created_at) AS created_at
FROM rules GROUP BY ALL;
CREATE TABLE terms (
    term_id VARCHAR PRIMARY KEY,
    list_id VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    expression VARCHAR NOT NULL,
    meaning VARCHAR
);
CREATE TEMP TABLE requests_before AS SELECT * FROM requests;
DROP TABLE requests;
CREATE TABLE requests (
    request_id VARCHAR PRIMARY KEY,
    kind VARCHAR NOT NULL CHECK (kind IN ('mark', 'identify', 'suggest', 'rules', 'study')),
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
