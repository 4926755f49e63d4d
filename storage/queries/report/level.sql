-- How good the episodes of a dataset are.
SELECT count(*) AS episodes, avg(return_) AS return_, min(return_) AS worst, max(return_) AS best,
    avg(length) AS length
FROM episodes WHERE dataset_id = $dataset
