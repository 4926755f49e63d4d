-- Why labels were refused, with an example of each reason.
SELECT reason, count(*) AS n, count(DISTINCT request_id) AS replies, any_value(detail) AS detail,
    any_value(raw) AS raw
FROM rejections WHERE run_id IN (SELECT unnest($runs::VARCHAR[])) GROUP BY reason ORDER BY n DESC, reason
