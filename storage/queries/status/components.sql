-- Names of the components of all observations.
SELECT DISTINCT unnest(component_names) AS name FROM datasets ORDER BY name
