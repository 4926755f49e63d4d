-- The two groups of steps from which the items of a gold queue were drawn, those with and those without a label of the
-- queue's runs: how many steps each has, and which of them are items.
WITH queue AS (
    SELECT dataset_id, run_ids FROM review_queues WHERE queue_id = $queue
), labelled AS (
    SELECT DISTINCT episode_id, step FROM annotations
    WHERE list_contains((SELECT run_ids FROM queue), run_id) AND suggested_action IS NOT NULL
), drawn AS (
    SELECT episode_id, step, (episode_id, step) IN (SELECT (episode_id, step) FROM labelled) AS is_labelled
    FROM review_items WHERE queue_id = $queue
)
SELECT is_labelled, list((episode_id, step) ORDER BY episode_id, step) AS places,
    if(is_labelled, (SELECT count(*) FROM labelled), (SELECT sum(length)::BIGINT - (SELECT count(*) FROM labelled)
        FROM episodes WHERE dataset_id = (SELECT dataset_id FROM queue))) AS size
FROM drawn GROUP BY is_labelled ORDER BY is_labelled DESC
