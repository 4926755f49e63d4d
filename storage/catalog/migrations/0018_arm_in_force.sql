-- The arm whose policy a comparison put in force; NULL where it left the baseline.
ALTER TABLE comparisons ADD COLUMN promoted_arm VARCHAR;
UPDATE comparisons SET promoted_arm = 'labels' WHERE accepted;
