-- The arms of a comparison, the best last.
SELECT arm, mode, labels, draws, accepted, episodes, return_, low, high FROM arms WHERE comparison_id = $comparison
ORDER BY mode, return_, arm
