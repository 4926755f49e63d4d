-- One request of each kind of a run.
SELECT kind, any_value(prompt_version) AS prompt_version, any_value(body) AS body, count(*) AS n
FROM requests JOIN run_requests USING (request_id) WHERE run_id = $run GROUP BY kind ORDER BY kind
