"""Everything on disk: Parquet steps, the DuckDB catalog, raw replies, policies and reports.

It knows nobody above it: no environment, no language model, no learner.

From the ground up: disk, expressions, catalog, store, datasets and queries, annotations, importing and policies, then
exporting, remote and upkeep.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
