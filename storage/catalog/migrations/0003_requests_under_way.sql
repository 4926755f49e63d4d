-- `card` and `steps` let replies be read later without the command that asked; `marker` and `unsure_since` are times
-- of the server's clock: before the batch was sent, and when its outcome was first found unknown; the last two are
-- dollars expected and dollars at most.
ALTER TABLE annotation_runs ADD COLUMN card JSON;
ALTER TABLE run_requests ADD COLUMN steps JSON;
ALTER TABLE batches ADD COLUMN run_id VARCHAR;
ALTER TABLE batches ADD COLUMN base_url VARCHAR;
ALTER TABLE batches ADD COLUMN marker TIMESTAMPTZ;
ALTER TABLE batches ADD COLUMN unsure_since TIMESTAMPTZ;
ALTER TABLE batches ADD COLUMN error VARCHAR;
ALTER TABLE batch_items ADD COLUMN estimated_usd DOUBLE;
ALTER TABLE batch_items ADD COLUMN worst_usd DOUBLE;
