-- The annotation runs over a dataset whose labels a comparison used.
SELECT DISTINCT run_id FROM (SELECT unnest(run_ids) AS run_id FROM refinements WHERE comparison_id = $comparison)
JOIN annotation_runs USING (run_id) WHERE dataset_id = $dataset ORDER BY run_id
