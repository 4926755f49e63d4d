-- Annotation runs, the oldest first.
SELECT * FROM annotation_runs WHERE run_id IN (SELECT unnest($runs::VARCHAR[])) ORDER BY created_at, run_id
