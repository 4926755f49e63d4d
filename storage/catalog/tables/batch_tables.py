"""What the catalog keeps about requests under way, beyond its first tables: how to find, price and end them."""

from __future__ import annotations

BATCH_COLUMNS = """
ALTER TABLE annotation_runs ADD COLUMN card JSON;
ALTER TABLE run_requests ADD COLUMN steps JSON;
ALTER TABLE batches ADD COLUMN run_id VARCHAR;
ALTER TABLE batches ADD COLUMN base_url VARCHAR;
ALTER TABLE batches ADD COLUMN marker TIMESTAMPTZ;
ALTER TABLE batches ADD COLUMN unsure_since TIMESTAMPTZ;
ALTER TABLE batches ADD COLUMN error VARCHAR;
ALTER TABLE batch_items ADD COLUMN estimated_usd DOUBLE;
ALTER TABLE batch_items ADD COLUMN worst_usd DOUBLE;
"""
"""`card` and `steps` let replies be read later without the command that asked; `marker` and `unsure_since` are times of
the server's clock: before the batch was sent, and when its outcome was first found unknown; the last two are dollars
expected and dollars at most."""

ANSWERS = """
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
"""
"""`problem` is why a reply holds no answer, NULL if it holds one; `response_id` is the reply that a run's labels were
read from; `error` is why the last command of a run ended without all answers. A CHECK of a table cannot be changed, so
`annotation_runs` is written anew."""

BATCH_ACCOUNTS = """
ALTER TABLE batches ADD COLUMN account VARCHAR;
ALTER TABLE batches ADD COLUMN organisation VARCHAR;
UPDATE batches SET state = 'intent' WHERE state = 'submitted' AND provider = 'batch' AND coalesce(remote_id, '') = '';
"""
"""Who sent a batch, as hashes that give away neither key nor name; a batch without a name at its server is unknown."""
