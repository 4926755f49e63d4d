-- All policies, the newest first: where each comes from, what it returned where it was reported last, where it is in force.
SELECT policy_id, kind, policies.env_id, dataset_id, baseline_id, played.return_, played.low, played.high, played.mode,
    played.episodes, forced.in_force, policies.created_at
FROM policies
LEFT JOIN (
    SELECT policy_id, unnest(arg_max({return_: return_, low: low, high: high, mode: mode, episodes: episodes},
        (created_at, mode = 'greedy')))
    FROM evaluations WHERE purpose IN ('report', 'evaluate') GROUP BY policy_id
) AS played USING (policy_id)
LEFT JOIN (
    SELECT policy_id, string_agg(deployment, ', ' ORDER BY deployment) AS in_force
    FROM (SELECT deployment, arg_max(policy_id, number) AS policy_id FROM promotions GROUP BY deployment)
    GROUP BY policy_id
) AS forced USING (policy_id)
ORDER BY policies.created_at DESC, policy_id
