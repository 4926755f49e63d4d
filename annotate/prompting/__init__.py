"""From a trajectory to a request: tables, statistics, selected steps, templates and the reply's schema."""
