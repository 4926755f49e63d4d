-- The newest replay of each episode of a dataset.
SELECT episode_id, exact, detail FROM replays WHERE dataset_id = $dataset
QUALIFY row_number() OVER (PARTITION BY episode_id ORDER BY created_at DESC) = 1 ORDER BY episode_id
