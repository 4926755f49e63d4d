-- The environment steps of all episodes of an evaluation; NULL where it was played before they were counted.
ALTER TABLE evaluations ADD COLUMN steps BIGINT;
