"""Everything on disk: Parquet steps, the DuckDB catalog, raw replies, policies and reports.

It knows nobody above it: no environment, no language model, no learner.
"""
