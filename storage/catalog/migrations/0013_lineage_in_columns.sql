-- What questions ask for is a column, not a path in JSON: the hash of the network itself, as manifests of datasets name
-- it; the datasets beside the first one; and the number of an arm's draw. `config` keeps all of it.
ALTER TABLE policies ADD COLUMN policy_sha256 VARCHAR;
ALTER TABLE policies ADD COLUMN also VARCHAR[];
ALTER TABLE refinements ADD COLUMN draw INTEGER;
ALTER TABLE refinements ADD COLUMN also VARCHAR[];
UPDATE policies SET policy_sha256 = config ->> 'policy_sha256', also = from_json(config -> 'also', '["VARCHAR"]');
UPDATE refinements SET draw = (config ->> 'draw')::INTEGER, also = from_json(config -> 'also', '["VARCHAR"]');
