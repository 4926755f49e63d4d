-- The candidates of a comparison, by arm and draw, of the first three draws: more of them hide the others.
SELECT refinement_id, arm, coalesce(draw, 0) AS draw, candidates.number, candidates.policy_id,
    step, beta, coalesce(return_, consistency) AS return_, episodes, chosen
FROM candidates JOIN refinements USING (refinement_id) WHERE comparison_id = $comparison AND coalesce(draw, 0) < 3
ORDER BY arm, draw, beta, step
