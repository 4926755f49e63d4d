"""Questions to the catalog: anything a user may ask, read-only and bounded."""
