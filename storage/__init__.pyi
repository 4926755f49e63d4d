from . import annotations, catalog, datasets, disk, exporting, importing, policies, predicates, queries, remote, upkeep

__all__ = [
    "annotations",
    "catalog",
    "datasets",
    "disk",
    "exporting",
    "importing",
    "policies",
    "predicates",
    "queries",
    "remote",
    "upkeep",
]
