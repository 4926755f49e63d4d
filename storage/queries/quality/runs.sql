-- Annotation runs, the oldest first, with what each gave, and the kind of queue that it answers, if it is a review.
SELECT run_id, dataset_id, model, provider,
    (SELECT count(*) FROM annotations WHERE annotations.run_id = annotation_runs.run_id) AS labels,
    (SELECT count(*) FROM rules WHERE rules.run_id = annotation_runs.run_id) AS rules,
    (SELECT any_value(kind) FROM reviews JOIN review_queues USING (queue_id)
     WHERE reviews.run_id = annotation_runs.run_id) AS review
FROM annotation_runs ORDER BY created_at, run_id
