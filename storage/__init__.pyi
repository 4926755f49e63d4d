from . import annotations, catalog, datasets, disk, exporting, expressions, importing, policies, queries, remote, upkeep

__all__ = [
    "annotations",
    "catalog",
    "datasets",
    "disk",
    "exporting",
    "expressions",
    "importing",
    "policies",
    "queries",
    "remote",
    "upkeep",
]
