-- The arms of a comparison.
SELECT CASE arm WHEN 'labels' THEN 'refined' ELSE arm END AS arm, mode, return_, low, high
FROM arms WHERE comparison_id = $comparison ORDER BY arms.arm, mode
