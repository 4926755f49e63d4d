-- Annotation runs, the oldest first: what each gave, and when its first and its last reply came.
WITH written AS (  -- a recorded reply says in its provenance when its model wrote it
    SELECT split_part(file, '/', 2) AS run_id, count(*) AS replies,
        min(received_at) AS first_received, arg_min(provenance, received_at) AS first_provenance,
        max(received_at) AS last_received, arg_max(provenance, received_at) AS last_provenance
    FROM responses GROUP BY ALL
), labelled AS (
    SELECT run_id, count(*) AS labels FROM annotations GROUP BY ALL
), ruled AS (
    SELECT run_id, count(*) AS rules FROM rules GROUP BY ALL
)
SELECT annotation_runs.*, written.* EXCLUDE (run_id), coalesce(labels, 0) AS labels, coalesce(rules, 0) AS rules
FROM annotation_runs LEFT JOIN written USING (run_id) LEFT JOIN labelled USING (run_id) LEFT JOIN ruled USING (run_id)
WHERE run_id IN (SELECT unnest($runs::VARCHAR[])) ORDER BY created_at, run_id
