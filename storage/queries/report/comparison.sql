-- A comparison; none while nothing was judged.
SELECT * REPLACE (coalesce(credit_answer, if(credit, 'yes', 'not shown')) AS credit_answer) FROM comparisons WHERE comparison_id = $comparison
