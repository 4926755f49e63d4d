-- Batches under way, and what they cost at most.
SELECT batch_id, run_id, provider, state, batches.requests, sum(estimated_usd) AS expected_usd,
    sum(worst_usd) AS worst_usd, epoch(now() - batches.created_at) AS seconds
FROM batches LEFT JOIN batch_items USING (batch_id)
WHERE state IN ('intent', 'submitted')
GROUP BY ALL ORDER BY seconds DESC
