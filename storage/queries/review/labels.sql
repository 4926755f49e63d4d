-- The suggestions of runs beside their steps, whether another opinion differs, and the replay that measured each.
WITH measured AS (
    SELECT annotation_id, advantage FROM current_label_replays WHERE exact
    QUALIFY row_number() OVER (PARTITION BY annotation_id ORDER BY continuations DESC, label_replay_id) = 1
), contested AS (
    SELECT DISTINCT annotation_id FROM opinion_pairs WHERE NOT agree AND dataset_id = $dataset
)
SELECT annotation_id, run_id, episode_id, step, critical, suggested_action, suggested_label, implicit_reward,
    confidence, rationale, model, action_name, action_vector, agrees, length, advantage,
    annotation_id IN (SELECT annotation_id FROM contested) AS contested
FROM annotated_steps LEFT JOIN measured USING (annotation_id)
WHERE dataset_id = $dataset AND run_id IN (SELECT unnest($runs::VARCHAR[])) AND suggested_action IS NOT NULL
ORDER BY episode_id, step, annotation_id
