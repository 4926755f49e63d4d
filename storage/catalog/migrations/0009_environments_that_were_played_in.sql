-- Package versions and code with which episodes were played; a row of another table without an environment is older.
CREATE TABLE environments (
    environment_sha256 VARCHAR PRIMARY KEY,
    env_id VARCHAR NOT NULL,
    env_kwargs JSON NOT NULL,
    versions JSON NOT NULL,
    code JSON NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
ALTER TABLE evaluations ADD COLUMN environment_sha256 VARCHAR;
ALTER TABLE comparisons ADD COLUMN environment_sha256 VARCHAR;
ALTER TABLE label_replays ADD COLUMN environment_sha256 VARCHAR;
