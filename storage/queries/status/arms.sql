-- The arms of a comparison, greedy, the best first.
SELECT arm, labels, draws, accepted, episodes, return_, low, high FROM arms
WHERE comparison_id = $comparison AND mode = 'greedy' ORDER BY return_ DESC
