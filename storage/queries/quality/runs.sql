-- Annotation runs, the oldest first, with what each gave.
SELECT run_id, dataset_id, model, provider,
    (SELECT count(*) FROM annotations WHERE annotations.run_id = annotation_runs.run_id) AS labels,
    (SELECT count(*) FROM rules WHERE rules.run_id = annotation_runs.run_id) AS rules
FROM annotation_runs ORDER BY created_at, run_id
