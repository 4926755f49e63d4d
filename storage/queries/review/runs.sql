-- Annotation runs, the oldest first: how many labels and rules each has, and whether it holds a review's answers.
SELECT run_id, dataset_id, model,
    (SELECT count(*) FROM annotations WHERE annotations.run_id = annotation_runs.run_id) AS labels,
    (SELECT count(*) FROM rules WHERE rules.run_id = annotation_runs.run_id) AS rules,
    run_id IN (SELECT run_id FROM reviews) AS is_review
FROM annotation_runs ORDER BY created_at, run_id
