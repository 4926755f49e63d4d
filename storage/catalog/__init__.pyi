from .comments import Described, described_tables
from .connection import Catalog, Connection, create_file, insert_rows, is_corrupt
from .integrity import inspect_shards, suspect_shards
from .migrations import MIGRATIONS, catalog_version, create_tables, is_newest, migrate
from .rule_views import StoredList, StoredRule, count_decisions_of, scan_steps
from .view_columns import AGREEMENT_SHARE, component_columns, same_action
from .views import look_at_views, refresh_views

__all__ = [
    "AGREEMENT_SHARE",
    "MIGRATIONS",
    "Catalog",
    "Connection",
    "Described",
    "StoredList",
    "StoredRule",
    "catalog_version",
    "component_columns",
    "count_decisions_of",
    "create_file",
    "create_tables",
    "described_tables",
    "insert_rows",
    "inspect_shards",
    "is_corrupt",
    "is_newest",
    "look_at_views",
    "migrate",
    "refresh_views",
    "same_action",
    "scan_steps",
    "suspect_shards",
]
