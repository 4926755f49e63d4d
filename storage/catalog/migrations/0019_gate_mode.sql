-- How policies acted while a comparison's gate chose and accepted them, which its verdicts are about.
ALTER TABLE comparisons ADD COLUMN gate_mode VARCHAR;
UPDATE comparisons SET gate_mode = said.gate_mode FROM (
    SELECT comparison_id, any_value(config ->> '$.gate.mode') AS gate_mode FROM refinements GROUP BY ALL
) AS said WHERE said.comparison_id = comparisons.comparison_id;
