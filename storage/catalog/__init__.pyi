from .columns import AGREEMENT_SHARE, Described, component_columns, described_tables, same_action
from .connection import Catalog, Connection, Row, create_file, insert_rows, is_corrupt, rows_of
from .integrity import inspect_shards, suspect_shards
from .migrations import MIGRATIONS, catalog_version, create_tables, is_newest, migrate
from .rule_views import StoredList, StoredRule, count_decisions_of, scan_steps
from .views import look_at_views, refresh_views

__all__ = [
    "AGREEMENT_SHARE",
    "MIGRATIONS",
    "Catalog",
    "Connection",
    "Described",
    "Row",
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
    "rows_of",
    "same_action",
    "scan_steps",
    "suspect_shards",
]
