-- `problem` is why a reply holds no answer, NULL if it holds one; `response_id` is the reply that a run's labels were
-- read from; `error` is why the last command of a run ended without all answers. A CHECK of a table cannot be changed,
-- so `annotation_runs` is written anew.
ALTER TABLE responses ADD COLUMN problem VARCHAR;
ALTER TABLE run_requests ADD COLUMN response_id VARCHAR;
CREATE TEMP TABLE runs_before AS SELECT * FROM annotation_runs;
DROP TABLE annotation_runs;
CREATE TABLE annotation_runs (
    run_id VARCHAR PRIMARY KEY,
    dataset_id VARCHAR NOT NULL,
    provider VARCHAR NOT NULL,
    model VARCHAR,
    prompt_version VARCHAR,
    card_sha256 VARCHAR,
    config JSON,
    state VARCHAR NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done', 'failed')),
    recorded BOOLEAN,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    finished_at TIMESTAMPTZ,
    card JSON,
    error VARCHAR
);
INSERT INTO annotation_runs BY NAME SELECT * FROM runs_before;
DROP TABLE runs_before;
