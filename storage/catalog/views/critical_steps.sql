-- The steps on which the return depends most, as labels say and as rules say where they decide.
SELECT dataset_id, episode_id, step, run_id, annotation_id, NULL::VARCHAR AS rule_id, suggested_action, suggested_label,
    confidence, rationale, model
FROM annotations WHERE critical
UNION ALL BY NAME
SELECT dataset_id, episode_id, step, run_id, rule_id, suggested_action, suggested_label, confidence, rationale, model
FROM rule_labels WHERE critical
