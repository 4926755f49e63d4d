-- Annotation runs, those under way first, with what is open and how fast labels come.
WITH asked AS (
    SELECT run_id, count(*) FILTER (requests.state = 'pending') AS pending,
        count(*) FILTER (requests.state = 'in_batch') AS in_batch, count(*) FILTER (requests.state = 'done') AS done,
        count(*) FILTER (requests.state = 'failed') AS failed
    FROM run_requests JOIN requests USING (request_id) GROUP BY run_id
), lately AS (
    SELECT run_id, count(*) / $minutes AS labels_per_minute FROM annotations
    WHERE created_at > now() - to_minutes($minutes) GROUP BY run_id
)
SELECT run_id, annotation_runs.dataset_id, spending.model, annotation_runs.provider, state, requests, pending, in_batch,
    done, failed, error, annotations AS labels, rejections, coalesce(labels_per_minute, 0) AS labels_per_minute,
    cost_usd, annotation_runs.created_at
FROM annotation_runs
JOIN spending USING (run_id)
LEFT JOIN asked USING (run_id)
LEFT JOIN lately USING (run_id)
ORDER BY state = 'done', annotation_runs.created_at DESC, run_id
LIMIT $limit
