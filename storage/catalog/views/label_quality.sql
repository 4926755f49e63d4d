-- One row per run: what can be said of its labels in SQL alone. What needs arithmetic over states (an out-of-fold
-- classifier, a value fit) is `annotate quality`.
WITH accepted AS (
    SELECT run_id, count(*) AS annotations, avg(critical::DOUBLE) AS critical_share,
        avg(agrees::DOUBLE) AS confirmation_share, avg(confidence) AS confidence,
        count(DISTINCT episode_id) AS episodes, avg(step / greatest(length - 1, 1)) AS relative_position,
        avg((step < length / 3)::DOUBLE) AS early_share,
        avg((step >= length / 3 AND step < 2 * length / 3)::DOUBLE) AS middle_share,
        avg((step >= 2 * length / 3)::DOUBLE) AS late_share
    FROM annotated_steps GROUP BY ALL
), suggested AS (  -- continuous suggestions are rarely equal, so there the share is small and says little
    SELECT run_id, max(n) / sum(n) AS commonest_share, count(*) AS distinct_suggestions
    FROM (SELECT run_id, suggested_action, count(*) AS n FROM annotations
          WHERE suggested_action IS NOT NULL GROUP BY ALL)
    GROUP BY run_id
), refused AS (
    SELECT run_id, sum(n)::BIGINT AS rejections, map_from_entries(list((reason, n) ORDER BY reason)) AS reasons,
        coalesce(sum(n) FILTER (reason = 'illegal_action'), 0)::BIGINT AS illegal
    FROM (SELECT run_id, reason, count(*) AS n FROM rejections GROUP BY ALL) GROUP BY run_id
), compared AS (
    SELECT run_id, avg(agree::DOUBLE) FILTER (of_run) AS sample_agreement,
        avg(agree::DOUBLE) FILTER (model IS DISTINCT FROM other_model) AS model_agreement
    FROM (SELECT run_id, dataset_id, episode_id, step, model, other_model, opinion, other_opinion, agree,
              bool_or(run_id = other_run_id) AS of_run
          FROM opinion_pairs GROUP BY ALL)
    GROUP BY run_id
), followed AS (  -- only where somebody else has spoken too
    SELECT run_id, count(*) AS shared_steps, avg(with_majority::DOUBLE) AS majority_share
    FROM majority_votes JOIN annotations USING (annotation_id)
    WHERE annotation_id IN (SELECT annotation_id FROM opinion_pairs) GROUP BY run_id
), measured AS (
    SELECT run_id, count(*) FILTER (exact) AS replayed, count(*) FILTER (NOT exact) AS inexact_replays,
        avg(advantage) AS replay_advantage, avg((advantage > 0)::DOUBLE) AS replay_better_share,
        sum(environment_steps)::BIGINT AS replay_steps
    FROM current_label_replays JOIN annotations USING (annotation_id) GROUP BY run_id
), sizes AS (
    SELECT dataset_id, count(*) AS episodes_in_all FROM episodes GROUP BY dataset_id
)
SELECT run_id, dataset_id, provider, model, coalesce(annotations, 0) AS annotations, critical_share,
    confirmation_share, confidence, coalesce(episodes, 0) AS episodes, relative_position,
    coalesce(rejections, 0) AS rejections, reasons AS rejection_reasons,
    coalesce(illegal, 0) AS illegal, coalesce(episodes, 0) / episodes_in_all AS episode_share,
    early_share, middle_share, late_share, commonest_share, distinct_suggestions,
    coalesce(shared_steps, 0) AS shared_steps, sample_agreement, model_agreement, majority_share,
    coalesce(replayed, 0) AS replayed, coalesce(inexact_replays, 0) AS inexact_replays, replay_advantage,
    replay_better_share, coalesce(replay_steps, 0) AS replay_steps
FROM annotation_runs
LEFT JOIN accepted USING (run_id)
LEFT JOIN suggested USING (run_id)
LEFT JOIN refused USING (run_id)
LEFT JOIN compared USING (run_id)
LEFT JOIN followed USING (run_id)
LEFT JOIN measured USING (run_id)
LEFT JOIN sizes USING (dataset_id)
