-- Some steps of each rule of some runs, those first at which it decides.
SELECT rule_id, episode_id, step, decides, suggested_action, suggested_label FROM ruled_steps
WHERE dataset_id = $dataset AND run_id IN (SELECT unnest($runs::VARCHAR[]))
QUALIFY row_number() OVER (
    PARTITION BY rule_id ORDER BY decides DESC, md5(concat_ws(' ', rule_id, episode_id, step, $seed))
) <= $most
ORDER BY rule_id, episode_id, step
