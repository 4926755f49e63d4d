-- The newest comparison.
SELECT comparison_id, env_id, dataset_id, policy_id, accepted, reason, better,
    coalesce(credit_answer, if(credit, 'yes', 'not shown')) AS credit
FROM comparisons ORDER BY created_at DESC, comparison_id DESC LIMIT 1
