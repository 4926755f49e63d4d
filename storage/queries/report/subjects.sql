-- Everything that a report can be about, with its dataset and its comparison.
WITH latest AS (
    SELECT dataset_id, comparison_id FROM comparisons
    QUALIFY row_number() OVER (PARTITION BY dataset_id ORDER BY created_at DESC, comparison_id DESC) = 1
), used AS (
    SELECT run_id, comparison_id FROM (SELECT unnest(run_ids) AS run_id, comparison_id FROM refinements)
    JOIN comparisons USING (comparison_id)
    QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY comparisons.created_at DESC, comparison_id DESC) = 1
)
SELECT 'dataset' AS kind, dataset_id AS name, dataset_id, comparison_id, created_at
FROM datasets LEFT JOIN latest USING (dataset_id)
UNION ALL
SELECT 'run', run_id, dataset_id, comparison_id, created_at FROM annotation_runs LEFT JOIN used USING (run_id)
UNION ALL
SELECT 'comparison', comparison_id, dataset_id, comparison_id, created_at FROM comparisons
UNION ALL
SELECT 'refinement', refinement_id, dataset_id, comparison_id, created_at FROM refinements
