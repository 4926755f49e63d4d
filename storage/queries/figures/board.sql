-- The newest played comparison of each environment.
SELECT CASE arm WHEN 'labels' THEN 'refined' ELSE arm END AS arm, env_id, return_, low, high
FROM leaderboard WHERE mode = 'greedy' AND basis = 'played'
QUALIFY rank() OVER (PARTITION BY env_id ORDER BY created_at DESC, comparison_id) = 1
ORDER BY env_id, leaderboard.arm
