-- Suggestions of each run judged by each other run, the gold one: name it, `WHERE gold_run_id = ...`. One row per
-- suggested action, and one with action NULL for all of them. Intervals are Wilson's (JASA 1927); `annotate quality
-- --gold` has exact ones, and takes the samples of one state together.
WITH judged AS (
    SELECT annotation_id, other_run_id AS gold_run_id, agree AS is_right FROM opinion_pairs WHERE run_id <> other_run_id
    UNION ALL  -- an answer without an action: above zero there is nothing better than what was done, below it is wrong
    SELECT notes.annotation_id, gold.run_id,
        CASE WHEN gold.implicit_reward > 0 THEN notes.agrees WHEN notes.agrees THEN false END
    FROM annotated_steps AS notes JOIN annotations AS gold USING (dataset_id, episode_id, step)
    WHERE gold.suggested_action IS NULL AND gold.implicit_reward <> 0 AND notes.suggested_action IS NOT NULL
        AND notes.run_id <> gold.run_id
    UNION ALL
    SELECT annotation_id, run_id, verdict = 'accept' FROM current_reviews
    WHERE annotation_id IS NOT NULL AND verdict IN ('accept', 'correct', 'reject')
), verdicts AS (  -- of a gold run that contradicts itself there is none
    SELECT annotation_id, gold_run_id,
        CASE WHEN bool_and(is_right) = bool_or(is_right) THEN bool_and(is_right) END AS is_right
    FROM judged GROUP BY ALL
), said_critical AS (  -- a review says it of its own accord only
    SELECT run_id, dataset_id, episode_id, step, critical FROM annotations
    WHERE run_id NOT IN (SELECT run_id FROM reviews)
    UNION ALL
    SELECT run_id, dataset_id, episode_id, step, critical FROM current_reviews WHERE critical IS NOT NULL
), critical_states AS (  -- a run that calls everything critical tells nothing apart
    SELECT run_id AS gold_run_id, dataset_id, episode_id, step, bool_and(critical) AS gold_critical
    FROM said_critical
    WHERE run_id IN (SELECT run_id FROM said_critical GROUP BY run_id HAVING count(DISTINCT critical) = 2)
    GROUP BY ALL HAVING bool_and(critical) = bool_or(critical)
), counted AS (
    SELECT gold_run_id, run_id, notes.dataset_id, model, prompt_version, action, count(*) AS suggestions,
        count(DISTINCT (notes.episode_id, notes.step)) AS states,
        count(is_right) AS compared, count(*) FILTER (is_right) AS correct,
        count(*) FILTER (critical AND gold_critical IS NOT NULL) AS called_critical,
        count(*) FILTER (critical AND gold_critical) AS called_correctly,
        count(*) FILTER (gold_critical) AS truly_critical
    FROM (SELECT *, if(len(suggested_action) = 1 AND suggested_label IS NOT NULL, suggested_label, NULL) AS action
          FROM annotations) AS notes
    JOIN verdicts USING (annotation_id)
    LEFT JOIN critical_states USING (gold_run_id, dataset_id, episode_id, step)
    GROUP BY GROUPING SETS (
        (gold_run_id, run_id, notes.dataset_id, model, prompt_version),
        (gold_run_id, run_id, notes.dataset_id, model, prompt_version, action)
    )
    HAVING grouping(action) = 1 OR action IS NOT NULL
)
SELECT gold_run_id, run_id, dataset_id, model, prompt_version, action, states, suggestions, compared, correct,
    correct / nullif(compared, 0) AS precision_,
    greatest(0, (correct + 1.9207 - half_width) / (compared + 3.8415)) AS low,
    least(1, (correct + 1.9207 + half_width) / (compared + 3.8415)) AS high,
    called_critical, called_correctly, truly_critical,
    called_correctly / nullif(called_critical, 0) AS critical_precision,
    called_correctly / nullif(truly_critical, 0) AS critical_recall
FROM (SELECT *, 1.96 * sqrt(correct * (compared - correct) / nullif(compared, 0) + 0.9604) AS half_width FROM counted)
ORDER BY gold_run_id, run_id, action NULLS FIRST
