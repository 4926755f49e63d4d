"""Open a store without trajnote: the catalog with plain DuckDB, the steps with polars.

`python docs/read_the_catalog.py trajnote-store`. While another process writes, DuckDB refuses to open the file: try
again, or read a copy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
import polars as pl


def mean_confidence(store: Path) -> list[tuple[object, ...]]:
    """Labels and mean confidence of each annotator, in SQL."""
    with duckdb.connect(str(store / "catalog.duckdb"), read_only=True) as con:
        question = "SELECT model, count(*), avg(confidence) FROM annotations GROUP BY model ORDER BY model"
        return con.execute(question).fetchall()


def labelled_steps(store: Path) -> pl.DataFrame:
    """The steps that are annotated, with their labels, joined by polars; observations are fixed-size arrays."""
    with duckdb.connect(str(store / "catalog.duckdb"), read_only=True) as con:
        question = "SELECT dataset_id, episode_id, step, suggested_label, confidence, model FROM annotations"
        labels = pl.from_arrow(con.execute(question).to_arrow_table())
    if not isinstance(labels, pl.DataFrame):
        raise TypeError("one column came back where a table was expected")
    steps = pl.concat(
        [
            pl.scan_parquet(folder / "*.parquet").with_columns(dataset_id=pl.lit(folder.name))
            for folder in sorted((store / "rollouts").iterdir())
        ]
    )
    keys = ["dataset_id", "episode_id", "step"]
    return labels.lazy().join(steps, on=keys).sort([*keys, "model"]).collect()


def main(store: Path) -> None:
    """Print both."""
    for model, labels, confidence in mean_confidence(store):
        print(f"{model}: {labels} labels, mean confidence {confidence:.3f}")
    print(labelled_steps(store).select("episode_id", "step", "action", "suggested_label", "model").head())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "trajnote-store"))
