-- One row per arm of a comparison; its verdicts stand in the row of the labels, in the mode that they are about.
SELECT comparison_id, arm, env_id, dataset_id, recipe, seed, mode, labels, return_, low, high, episodes, draws,
    arms.accepted AS accepted_draws,
    CASE WHEN arm = 'labels' AND coalesce(gate_mode, mode) = mode THEN better END AS better,
    CASE WHEN arm = 'labels' AND coalesce(gate_mode, mode) = mode
        THEN coalesce(credit_answer, if(credit, 'yes', 'not shown')) END AS credit,
    lead, lead_low, lead_high, basis, created_at, environment_sha256
FROM arms JOIN comparisons USING (comparison_id)
LEFT JOIN (SELECT comparison_id, any_value(seed) AS seed FROM refinements GROUP BY ALL) USING (comparison_id)
ORDER BY env_id, comparison_id, mode, return_ DESC
