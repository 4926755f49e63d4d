-- Who sent a batch, as hashes that give away neither key nor name; a batch without a name at its server is unknown.
ALTER TABLE batches ADD COLUMN account VARCHAR;
ALTER TABLE batches ADD COLUMN organisation VARCHAR;
UPDATE batches SET state = 'intent' WHERE state = 'submitted' AND provider = 'batch' AND coalesce(remote_id, '') = '';
