-- A policy, then the policies that it came from.
WITH RECURSIVE ancestors AS (
    SELECT *, 0 AS generation FROM policies WHERE policy_id = $policy
    UNION ALL
    SELECT policies.*, generation + 1 FROM policies JOIN ancestors ON policies.policy_id = ancestors.baseline_id
    WHERE generation < 20
) SELECT * FROM ancestors ORDER BY generation
