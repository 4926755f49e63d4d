-- A comparison; none while nothing was judged.
SELECT * FROM comparisons WHERE comparison_id = $comparison
