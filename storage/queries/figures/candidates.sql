-- The candidates of a comparison over the training, of the first three draws of each arm: more of them hide the others.
SELECT CASE arm WHEN 'labels' THEN 'refined' ELSE arm END AS arm, refinement_id, step, beta,
    coalesce(candidates.return_, consistency) AS return_, episodes, chosen
FROM candidates JOIN refinements USING (refinement_id)
WHERE comparison_id = $comparison AND coalesce(draw, 0) < 3 ORDER BY refinement_id, number
