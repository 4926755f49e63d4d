from .connection import Catalog, Connection, create_file, insert_rows, is_corrupt
from .environments import KnownEnvironment, insert_environment, list_environments
from .integrity import inspect_shards, suspect_shards
from .migrations import MIGRATIONS, catalog_version, create_tables, is_newest, migrate
from .opinions import AGREEMENT_SHARE, same_action
from .rule_views import STEP, is_allowed, match_steps
from .views import component_columns, look_at_views, refresh_views

__all__ = [
    "AGREEMENT_SHARE",
    "MIGRATIONS",
    "STEP",
    "Catalog",
    "Connection",
    "KnownEnvironment",
    "catalog_version",
    "component_columns",
    "create_file",
    "create_tables",
    "insert_environment",
    "insert_rows",
    "inspect_shards",
    "is_allowed",
    "is_corrupt",
    "is_newest",
    "list_environments",
    "look_at_views",
    "match_steps",
    "migrate",
    "refresh_views",
    "same_action",
    "suspect_shards",
]
