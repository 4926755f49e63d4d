-- Replays of labels in the newest environment of their dataset: what two environments paid is never one mean.
SELECT * FROM label_replays QUALIFY environment_sha256 IS NOT DISTINCT FROM last_value(environment_sha256) OVER (
    PARTITION BY dataset_id ORDER BY created_at, label_replay_id
    ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
)
