-- The candidates of a comparison over the training.
SELECT CASE arm WHEN 'labels' THEN 'refined' ELSE arm END AS arm, refinement_id, step, beta,
    coalesce(candidates.return_, consistency) AS return_, episodes, chosen
FROM candidates JOIN refinements USING (refinement_id)
WHERE comparison_id = $comparison ORDER BY refinement_id, number
