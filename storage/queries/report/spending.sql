-- What annotation runs have cost.
SELECT * FROM spending WHERE run_id IN (SELECT unnest($runs::VARCHAR[])) ORDER BY run_id
