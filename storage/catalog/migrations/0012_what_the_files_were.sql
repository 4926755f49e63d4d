-- `modified_at` is the time of the file when all of it was last compared; null if the whole was damaged then.
CREATE TABLE shards (
    dataset_id VARCHAR NOT NULL,
    shard VARCHAR NOT NULL,
    sha256 VARCHAR NOT NULL,
    footer_sha256 VARCHAR NOT NULL,
    modified_at TIMESTAMP_NS,
    PRIMARY KEY (dataset_id, shard)
);
