"""Pictures from the catalog: a comparison's arms, its candidates over the training, and the board of all environments.

Everything drawn is in the catalog already; the HTML report is in `page.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lazy_loader

from storage.disk import write_whole
from storage.errors import Prerequisite
from storage.queries import Row, ask
from storage.store import Store

alt: Any = lazy_loader.load("altair")
vl_convert: Any = lazy_loader.load("vl_convert")
PictureFormat = Literal["svg", "pdf", "png"]

# Okabe and Ito's colours, distinguishable with any kind of colour blindness.
_COLOURS = {
    "baseline": "#000000",
    "refined": "#0072B2",
    "no_labels": "#009E73",
    "shuffled": "#E69F00",
    "random": "#CC79A7",
    "permuted": "#F0E442",
    "random_states": "#56B4E9",
    "oracle": "#D55E00",
    "rules_played": "#7F7F7F",
}
_WIDTH, _ROW, _CURVE_HEIGHT = 300, 26, 220  # pixels
_PNG_SCALE = 2.0
_OWN, _PALE = "refined", 0.3  # the annotator's labels, and the opacity of other arms beside them


def draw_figures(
    store: Store, folder: Path, *, comparison: str | None = None, picture_format: PictureFormat = "svg"
) -> list[Path]:
    """Draw `arms` and `candidates` of a comparison, and the `board` of all; equal catalogs give equal pictures.

    Pictures of estimates say so, and estimates are not on the board.

    Args:
        store: with a comparison, so after `refine`.
        folder: for the pictures; made if missing.
        comparison: id or its beginning; the newest one when None.
        picture_format: `svg`, `pdf` or `png`.

    Returns:
        The files.

    Raises:
        Prerequisite: if there is no such comparison, or the extra `plots` is not installed.
    """
    found = _find(store, comparison)
    if not find_spec("altair") or not find_spec("vl_convert"):
        raise Prerequisite("Pictures need Altair and vl-convert.", "pip install 'trajnote[plots]'")
    subject = f"{found['env_id']}, {found['dataset_id']}" if found["env_id"] else found["dataset_id"]
    with store.catalog.read() as con:
        arms = ask(con, "figures/arms", comparison=found["comparison_id"])
        candidates = ask(con, "figures/candidates", comparison=found["comparison_id"])
        board = ask(con, "figures/board")
    charts = {
        "arms": _draw_arms(arms, subject, found["estimated"]),
        "candidates": _draw_candidates(candidates, subject, found["estimated"]),
    }
    if board:
        charts["board"] = _draw_board(board)
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(chart, folder / f"{name}.{picture_format}", picture_format) for name, chart in charts.items()]


def _find(store: Store, comparison: str | None) -> Row:
    with store.catalog.read() as con:
        found = ask(con, "figures/newest", start=comparison or "")
    if not found:
        named = f"comparison {comparison}" if comparison else "comparison"
        raise Prerequisite(f"The store has no {named}.", "Run `trajnote refine` first.")
    return found[0]


def _draw_arms(rows: Sequence[dict[str, Any]], subject: str, estimated: bool) -> Any:
    """Mean returns as points on their intervals, one row per arm, greedy and sampled side by side."""
    words = "Mean return on the report seeds" if not estimated else "Estimated discounted return, not played"
    return (
        _intervals(rows)
        .facet(column=alt.Column("mode:N", title=None))
        .properties(title=_title(f"{words}, 95% bootstrap intervals", subject))
    )


def _draw_board(rows: Sequence[dict[str, Any]]) -> Any:
    """The newest comparison of every environment, greedy, each with returns on an axis of its own."""
    title = _title("Mean greedy return on the report seeds, 95% bootstrap intervals", "newest comparisons")
    return (
        _intervals(rows)
        .facet(row=alt.Row("env_id:N", title=None))
        .resolve_scale(x="independent")
        .properties(title=title)
    )


def _intervals(rows: Sequence[dict[str, Any]]) -> Any:
    shared = alt.Chart(alt.Data(values=list(rows))).encode(
        y=alt.Y("arm:N", sort=list(_COLOURS), title=None),
        color=alt.Color("arm:N", scale=_scale(rows), legend=None),
    )
    intervals = shared.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="return per episode (sum of rewards)", scale=alt.Scale(zero=False)), x2="high:Q"
    )
    points = shared.mark_point(filled=True, size=45, opacity=1).encode(x="return_:Q")
    return alt.layer(intervals, points).properties(width=_WIDTH, height=alt.Step(_ROW))


def _draw_candidates(rows: Sequence[dict[str, Any]], subject: str, estimated: bool) -> Any:
    """Selection returns of every candidate over the training, one line per draw and beta; chosen ones are ringed.

    The annotator's labels are drawn last and at full strength, the other arms thin and pale behind them.
    """
    rows = sorted(rows, key=lambda row: row["arm"] == _OWN)
    score = "log-likelihood of held-out labels" if estimated else "mean return on the selection seeds"
    title = (
        f"Candidates of every arm; {'the ringed ones are estimated' if estimated else 'the gate tests the ringed ones'}"
    )
    shared = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X("step:Q", title="optimizer steps of the refinement"),
        y=alt.Y("return_:Q", title=score),
        color=alt.Color("arm:N", scale=_scale(rows), title="arm"),
    )
    dashes = alt.StrokeDash("beta:N", title="beta", legend=alt.Legend(symbolType="stroke", symbolSize=400))
    lines = shared.mark_line().encode(
        detail="refinement_id:N", strokeDash=dashes, strokeWidth=_own_or(2, 1), opacity=_own_or(1, _PALE)
    )
    counts = sorted({row["episodes"] for row in rows if row["episodes"]})
    points = shared.mark_point(filled=True, size=25).encode(opacity=_own_or(1, _PALE))
    if counts:  # the area of a point is the number of episodes that its mean rests on
        scale = alt.Scale(domain=[0, counts[-1]], range=[0, 60])
        points = points.encode(
            size=alt.Size("episodes:Q", scale=scale, legend=alt.Legend(title="episodes", values=counts))
        )
    rings = shared.transform_filter("datum.chosen").mark_point(size=160, strokeWidth=2)
    chosen = rings.encode(opacity=_own_or(1, 2 * _PALE))
    return alt.layer(lines, points, chosen).properties(
        width=2 * _WIDTH,
        height=_CURVE_HEIGHT,
        title=_title(title, subject),
    )


def _own_or(own: float, other: float) -> Any:
    """One value for the annotator's labels, another for the other arms."""
    return alt.condition(f"datum.arm === '{_OWN}'", alt.value(own), alt.value(other))


def _title(text: str, subject: str) -> Any:
    return alt.TitleParams(text, subtitle=subject, anchor="start")


def _scale(rows: Sequence[dict[str, Any]]) -> Any:
    """The colours of the arms that occur, so that a legend shows no others."""
    present = {row["arm"] for row in rows}
    shown = {arm: colour for arm, colour in _COLOURS.items() if arm in present}
    return alt.Scale(domain=list(shown), range=list(shown.values()))


def _write(chart: Any, path: Path, picture_format: PictureFormat) -> Path:
    specification = chart.configure(background="white").to_json()
    if picture_format == "svg":
        content = vl_convert.vegalite_to_svg(specification).encode()
    elif picture_format == "pdf":
        content = vl_convert.vegalite_to_pdf(specification)
    else:
        content = vl_convert.vegalite_to_png(specification, scale=_PNG_SCALE)
    write_whole(path, content)
    return path
