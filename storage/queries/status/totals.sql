-- How many datasets there are, and what all replies have cost.
SELECT (SELECT count(*) FROM datasets) AS datasets, (SELECT coalesce(sum(cost_usd), 0) FROM responses) AS spent_usd
