-- Suggestions and rules that more reviewers refuse than accept: nothing is trained on them.
SELECT dataset_id, annotation_id, rule_id, count(*) FILTER (verdict IN ('reject', 'correct')) AS refused,
    count(*) FILTER (verdict = 'accept') AS accepted
FROM current_reviews WHERE annotation_id IS NOT NULL OR rule_id IS NOT NULL
GROUP BY ALL HAVING refused > accepted
