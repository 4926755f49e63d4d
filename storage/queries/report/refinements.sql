-- The refinements of a comparison, by arm and draw.
SELECT refinement_id, arm, mode, config, run_ids, labels, accepted, policy_id, reason, finished_at
FROM refinements WHERE comparison_id = $comparison ORDER BY arm, draw
