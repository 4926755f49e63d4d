-- Seeds of an environment that a gate has, by what decides it, so that no other gate takes them. `used_before` says what
-- had used one of them when a person named the first; NULL: nothing.
CREATE TABLE reserved_seeds (
    plan_id VARCHAR NOT NULL,
    env_id VARCHAR NOT NULL,
    first_seed BIGINT NOT NULL,
    episodes BIGINT NOT NULL,
    used_before VARCHAR,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (plan_id, first_seed)
);
-- How many episodes the mean return of a candidate rests on; NULL where that is not known or the number is no mean.
ALTER TABLE candidates ADD COLUMN episodes INTEGER;
