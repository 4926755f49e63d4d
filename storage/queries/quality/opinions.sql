-- What runs say of steps, labels and what rules decide alike, beside what was done there.
WITH wanted AS (
    SELECT unnest($episodes::BIGINT[]) AS episode_id, unnest($steps::INTEGER[]) AS step
)
SELECT annotation_id AS opinion_id, run_id, model, prompt_version, episode_id, step, suggested_action, suggested_label,
    action_vector, critical, implicit_reward, confidence
FROM annotated_steps WHERE dataset_id = $dataset AND run_id IN (SELECT unnest($runs::VARCHAR[]))
    AND ($episodes IS NULL OR (episode_id, step) IN (SELECT (episode_id, step) FROM wanted))
UNION ALL BY NAME
SELECT rule_id AS opinion_id, run_id, model, prompt_version, episode_id, step, suggested_action, suggested_label,
    action_vector, critical, NULL::DOUBLE AS implicit_reward, confidence
FROM rule_labels WHERE dataset_id = $dataset AND run_id IN (SELECT unnest($runs::VARCHAR[]))
    AND (episode_id, step) IN (SELECT (episode_id, step) FROM wanted)
ORDER BY run_id, episode_id, step, opinion_id
