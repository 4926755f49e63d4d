from .connection import Catalog, Connection, create_file, insert_rows, is_corrupt
from .integrity import inspect_shards, suspect_shards
from .migrations import MIGRATIONS, catalog_version, create_tables, is_newest, migrate
from .views import (
    AGREEMENT_SHARE,
    STEP,
    component_columns,
    is_allowed,
    look_at_views,
    match_steps,
    refresh_views,
    same_action,
)

__all__ = [
    "AGREEMENT_SHARE",
    "MIGRATIONS",
    "STEP",
    "Catalog",
    "Connection",
    "catalog_version",
    "component_columns",
    "create_file",
    "create_tables",
    "insert_rows",
    "inspect_shards",
    "is_allowed",
    "is_corrupt",
    "is_newest",
    "look_at_views",
    "match_steps",
    "migrate",
    "refresh_views",
    "same_action",
    "suspect_shards",
]
