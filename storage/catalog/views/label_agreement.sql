-- One row per annotated step: how many opinions there are, and how far they agree.
WITH counted AS (
    SELECT dataset_id, episode_id, step, count(DISTINCT run_id) AS runs, count(DISTINCT model) AS models,
        avg(confidence) AS confidence, avg(agrees::DOUBLE) AS confirmation_share
    FROM annotated_steps WHERE suggested_action IS NOT NULL GROUP BY ALL
)
SELECT dataset_id, episode_id, step, opinions, runs, models, agreement, majority_label, majority_action,
    majority_share, confirmation_share, confidence
FROM counted LEFT JOIN tallies USING (dataset_id, episode_id, step)
