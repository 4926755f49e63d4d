"""The views that need nothing but the catalog's own tables and `annotated_steps`: one row per run, or per arm."""

from __future__ import annotations

from .quality_view import LABEL_QUALITY

_SPENDING = """
CREATE OR REPLACE VIEW spending AS
WITH asked AS (
    SELECT run_id, count(*) AS requests FROM run_requests GROUP BY ALL
), answered AS (  -- a reply belongs to the run in whose folder it lies, so that it is paid for once
    SELECT split_part(file, '/', 2) AS run_id, count(*) AS responses, any_value(model) AS model,
        sum(input_tokens)::BIGINT AS input_tokens, sum(cache_write_tokens)::BIGINT AS cache_write_tokens,
        sum(cache_read_tokens)::BIGINT AS cache_read_tokens, sum(output_tokens)::BIGINT AS output_tokens,
        sum(cost_usd) AS cost_usd
    FROM responses GROUP BY ALL
), accepted AS (
    SELECT run_id, count(*) AS annotations FROM annotations GROUP BY ALL
), refused AS (
    SELECT run_id, count(*) AS rejections FROM rejections GROUP BY ALL
), sent AS (  -- what is under way, or may have been billed without a bill that we saw, counts with the most it can cost
    SELECT run_id, sum(worst_usd) FILTER (outcome IS NULL) AS under_way_usd,
        sum(worst_usd) FILTER (outcome IN ('lost', 'unknown', 'released', 'missing')
            OR (outcome = 'succeeded' AND bill.cost_usd IS NULL)) AS lost_usd,
        sum(estimated_usd) FILTER (outcome = 'succeeded') AS estimated_usd
    FROM batch_items JOIN batches USING (batch_id)
    LEFT JOIN (SELECT batch_id, request_id, cost_usd FROM responses) AS bill USING (batch_id, request_id)
    GROUP BY run_id
)
SELECT run_id, dataset_id, provider, coalesce(annotation_runs.model, answered.model) AS model,
    coalesce(requests, 0) AS requests, coalesce(responses, 0) AS responses,
    coalesce(input_tokens, 0) AS input_tokens, coalesce(cache_write_tokens, 0) AS cache_write_tokens,
    coalesce(cache_read_tokens, 0) AS cache_read_tokens, coalesce(output_tokens, 0) AS output_tokens,
    coalesce(cost_usd, 0) AS cost_usd, estimated_usd,
    coalesce(under_way_usd, 0) AS under_way_usd, coalesce(lost_usd, 0) AS lost_usd,
    coalesce(annotations, 0) AS annotations, coalesce(rejections, 0) AS rejections,
    cost_usd / annotations AS cost_per_label
FROM annotation_runs
LEFT JOIN asked USING (run_id)
LEFT JOIN answered USING (run_id)
LEFT JOIN accepted USING (run_id)
LEFT JOIN refused USING (run_id)
LEFT JOIN sent USING (run_id)
"""

_LEADERBOARD = """
CREATE OR REPLACE VIEW leaderboard AS
SELECT comparison_id, arm, env_id, dataset_id, recipe, seed, mode, labels, return_, low, high, episodes, draws,
    arms.accepted AS accepted_draws, better, credit, basis, created_at,
    environment_sha256
FROM arms JOIN comparisons USING (comparison_id)
LEFT JOIN (SELECT comparison_id, any_value(seed) AS seed FROM refinements GROUP BY ALL) USING (comparison_id)
ORDER BY env_id, comparison_id, mode, return_ DESC
"""

_CURRENT_LABEL_REPLAYS = """
CREATE OR REPLACE VIEW current_label_replays AS  -- what two environments paid is never one mean
SELECT * FROM label_replays QUALIFY environment_sha256 IS NOT DISTINCT FROM last_value(environment_sha256) OVER (
    PARTITION BY dataset_id ORDER BY created_at, label_replay_id
    ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
)
"""

SUMMARIES = (_CURRENT_LABEL_REPLAYS, _SPENDING, LABEL_QUALITY, _LEADERBOARD)
"""Statements that make these views, in an order in which each finds what it needs."""
