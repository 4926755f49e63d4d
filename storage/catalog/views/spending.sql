-- One row per annotation run: requests, tokens, dollars, labels.
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
