-- What was played since the last comparison.
SELECT env_id, purpose, mode, count(*) AS policies, sum(episodes)::BIGINT AS episodes, max(return_) AS best,
    epoch(now() - max(created_at)) AS seconds
FROM evaluations
WHERE created_at > coalesce((SELECT max(created_at) FROM comparisons), TIMESTAMPTZ '1970-01-01')
GROUP BY ALL ORDER BY min(created_at)
