-- A sample of the states that a dataset visited, always the same.
SELECT observation FROM (SELECT observation FROM steps WHERE dataset_id = $dataset AND action_vector IS NOT NULL)
USING SAMPLE reservoir(1500 ROWS) REPEATABLE (0)
