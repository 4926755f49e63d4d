-- The answers in force of some runs that are reviews, each beside what was done in its step.
SELECT review_id, run_id, queue_id, kind, current_reviews.dataset_id, current_reviews.episode_id,
    current_reviews.step, annotation_id, verdict, critical, model, action_vector
FROM current_reviews JOIN review_queues USING (queue_id)
LEFT JOIN steps ON steps.dataset_id = current_reviews.dataset_id AND steps.episode_id = current_reviews.episode_id
    AND steps.step = current_reviews.step
WHERE run_id IN (SELECT unnest($runs::VARCHAR[])) ORDER BY run_id, item
