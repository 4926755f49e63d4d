-- How many requests each run has, by state.
SELECT run_id, count(*) AS requests, sum(input_tokens_estimate)::BIGINT AS input_tokens_estimate,
    count(*) FILTER (state = 'done') AS done, count(*) FILTER (state = 'failed') AS failed
FROM run_requests JOIN requests USING (request_id) WHERE run_id IN (SELECT unnest($runs::VARCHAR[])) GROUP BY run_id
