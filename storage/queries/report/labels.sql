-- The labels of runs beside the steps that they speak of, and the replay that measured each, if one did.
WITH measured AS (
    SELECT annotation_id, advantage, standard_error, continuations FROM current_label_replays WHERE exact
    QUALIFY row_number() OVER (PARTITION BY annotation_id ORDER BY continuations DESC, label_replay_id) = 1
)
SELECT annotation_id, run_id, request_id, episode_id, step, critical, suggested_action, suggested_label,
    implicit_reward, confidence, rationale, model, action_name, action_vector, agrees, length, observation,
    advantage, standard_error, continuations
FROM annotated_steps LEFT JOIN measured USING (annotation_id)
WHERE dataset_id = $dataset AND run_id IN (SELECT unnest($runs::VARCHAR[]))
ORDER BY episode_id, step, annotation_id
