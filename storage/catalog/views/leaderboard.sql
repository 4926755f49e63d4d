-- One row per arm of a comparison.
SELECT comparison_id, arm, env_id, dataset_id, recipe, seed, mode, labels, return_, low, high, episodes, draws,
    arms.accepted AS accepted_draws, better, credit, basis, created_at,
    environment_sha256
FROM arms JOIN comparisons USING (comparison_id)
LEFT JOIN (SELECT comparison_id, any_value(seed) AS seed FROM refinements GROUP BY ALL) USING (comparison_id)
ORDER BY env_id, comparison_id, mode, return_ DESC
