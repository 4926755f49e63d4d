"""The gate: arms and their trainings, the episodes that judge them, trials, and what the catalog keeps of it."""
