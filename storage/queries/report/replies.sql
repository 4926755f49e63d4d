-- Where the newest reply to each request lies.
SELECT request_id, file, line FROM responses WHERE request_id IN (SELECT unnest($requests::VARCHAR[]))
QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY received_at DESC, response_id DESC) = 1
