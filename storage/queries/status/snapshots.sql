-- The best candidate of each arm after so many training steps.
SELECT arm, step, max(return_) AS best, bool_or(chosen) AS chosen
FROM candidates JOIN refinements USING (refinement_id) WHERE comparison_id = $comparison GROUP BY ALL ORDER BY arm, step
