-- The newest answer of each reviewer to each item of a queue, unless it was withdrawn.
SELECT * FROM reviews
QUALIFY row_number() OVER (PARTITION BY run_id, item ORDER BY answered_at DESC, created_at DESC, review_id DESC) = 1
    AND verdict <> 'withdrawn'
