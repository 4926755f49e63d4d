-- The second verdict in words, and how far the labels lead each arm in the gate's mode; NULL before it was kept.
ALTER TABLE comparisons ADD COLUMN credit_answer VARCHAR;
ALTER TABLE arms ADD COLUMN lead DOUBLE;
ALTER TABLE arms ADD COLUMN lead_low DOUBLE;
ALTER TABLE arms ADD COLUMN lead_high DOUBLE;
