-- Annotation runs, the oldest first: what each gave, and the days on which its replies were written.
WITH written AS (  -- a recorded reply says in its provenance when its model wrote it
    SELECT split_part(file, '/', 2) AS run_id, count(*) AS replies, min(day) AS first_day, max(day) AS last_day
    FROM (SELECT file, coalesce(provenance->>'date', strftime(received_at AT TIME ZONE 'UTC', '%Y-%m-%d')) AS day
          FROM responses)
    GROUP BY ALL
), labelled AS (
    SELECT run_id, count(*) AS labels FROM annotations GROUP BY ALL
), ruled AS (
    SELECT run_id, count(*) AS rules FROM rules GROUP BY ALL
)
SELECT annotation_runs.*, first_day, last_day, coalesce(replies, 0) AS replies, coalesce(labels, 0) AS labels,
    coalesce(rules, 0) AS rules
FROM annotation_runs LEFT JOIN written USING (run_id) LEFT JOIN labelled USING (run_id) LEFT JOIN ruled USING (run_id)
WHERE run_id IN (SELECT unnest($runs::VARCHAR[])) ORDER BY created_at, run_id
