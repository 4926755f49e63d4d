-- The newest comparison whose id starts so.
SELECT comparison_id, env_id, dataset_id, basis = 'estimated' AS estimated FROM comparisons
WHERE starts_with(comparison_id, $start) ORDER BY created_at DESC, comparison_id LIMIT 1
