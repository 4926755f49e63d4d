"""The charts, as Vega-Lite specifications made with Altair; a browser draws them at its own width.

Colours are names such as `@labels`, which the page replaces from its light or dark palette. A chart that changes
with a click has named data, which the page fills in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

from ..labelling import Checkup
from .facts import CONFIRMS, QUESTIONS, Facts, Row, arm_name, confidence_rows, position_rows

Chart = alt.Chart | alt.LayerChart | alt.VConcatChart
_ARM_COLOURS = {
    "labels": "@labels",
    "baseline": "@ink",
    "no_labels": "@none",
    "shuffled": "@shuffled",
    "random": "@random",
    "permuted": "@permuted",
    "random_states": "@elsewhere",
    "oracle": "@oracle",
    "rules_played": "@played",
}
_SHAPES = {"corrects": "triangle-up", "confirms": "circle", "no suggestion": "square"}
_QUESTION_COLOURS = {
    CONFIRMS: "@confirms",
    QUESTIONS["out_of_fold"]: "@labels",
    QUESTIONS["opinions"]: "@random",
    QUESTIONS["replays"]: "@corrects",
}
_ROW_HEIGHT = 34
STANCE_COLOURS = {"corrects": "@corrects", "confirms": "@confirms", "no suggestion": "@muted"}
"""Stance of a label on the logged action -> name of its colour."""
_LANE_HEIGHT = 46


def draw_all(
    facts: Facts,
    labels: Sequence[Row],
    *,
    checkups: Sequence[Checkup],
    components: Sequence[Row],
    states: Sequence[Row],
) -> Row:
    """Everything that the page's scripts draw.

    Args:
        facts: of the subject.
        labels: of the subject.
        checkups: of its runs.
        components: name and unit of each possible axis.
        states: points of the state space, see `labels.state_rows`.

    Returns:
        `specs` by name; `states`, `components` and `axes`, the two components shown first, for the plane of states.
    """
    axes = first_axes(states, components)
    greedy = {row["arm"]: row["return_"] for row in facts.arms if row["mode"] == "greedy"}
    with debug_mode(False):  # Altair would check every part of every chart against its schema; a test checks them
        charts: dict[str, Chart] = {"timeline": timeline_chart(components)}
        if facts.arms:
            score = "estimated return, not played" if facts.estimated else "mean return"
            charts["arms"] = arms_chart(facts.arms, score)
        if facts.candidates:
            level = None if facts.estimated else greedy.get("baseline")
            score = "log-likelihood of held-out labels" if facts.estimated else "mean return, selection seeds"
            charts["candidates"] = candidates_chart(facts.candidates, level, score)
        if labels:
            charts["positions"] = positions_chart(position_rows(labels))
            charts["confidence"] = confidence_chart(confidence_rows(labels, checkups))
            across, up = ({**components[place], "place": place} for place in axes)
            charts["states"] = states_chart(across, up, states)
        specs = {name: chart.to_dict(validate=False) for name, chart in charts.items()}
    return {"specs": specs, "states": states, "components": components, "axes": axes}


def first_axes(states: Sequence[Row], components: Sequence[Row]) -> tuple[int, int]:
    """The two components shown first: x and y, or the first two with many values."""
    names = [component["name"] for component in components]
    if "x" in names and "y" in names:
        return names.index("x"), names.index("y")
    values = [len({row[f"c{place}"] for row in states}) for place in range(len(names))]
    rich = [place for place, count in enumerate(values) if count > 10] or list(range(len(names)))
    return rich[0], rich[min(1, len(rich) - 1)]


def arms_chart(arms: Sequence[Row], return_name: str = "mean return") -> Chart:
    """The headline: mean return of every arm with its interval, greedy and sampled."""
    rows = [row | {"name": arm_name(row["arm"])} for row in arms]
    order = list(
        dict.fromkeys(row["name"] for row in sorted(rows, key=lambda row: (row["mode"] != "greedy", row["return_"])))
    )
    modes = sorted({row["mode"] for row in rows})
    y: Any = alt.Y("name:N", title=None, sort=order[::-1], axis=alt.Axis(labelLimit=200, domain=False, ticks=False))
    offset: Any = (
        alt.YOffset("mode:N", sort=modes, scale=alt.Scale(paddingOuter=0.6)) if len(modes) > 1 else alt.Undefined
    )
    base = alt.Chart(_data(rows)).encode(y=y, yOffset=offset, color=_arm_colour(rows, legend=False))
    x = alt.X(
        "low:Q", title=f"{return_name} per episode", scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=6)
    )
    tip = [
        alt.Tooltip("name:N", title="arm"),
        alt.Tooltip("mode:N", title="acting"),
        alt.Tooltip("return_:Q", title=return_name, format=".4~r"),
        alt.Tooltip("low:Q", title="95% from", format=".4~r"),
        alt.Tooltip("high:Q", title="to", format=".4~r"),
        alt.Tooltip("episodes:Q", title="episodes"),
    ]
    intervals = base.mark_rule(strokeWidth=3, opacity=0.55, strokeCap="round").encode(x=x, x2="high:Q", tooltip=tip)
    points = base.mark_point(filled=True, size=95, opacity=1).encode(
        x="return_:Q",
        shape=alt.Shape(
            "mode:N",
            title=None,
            scale=alt.Scale(domain=["greedy", "sampled"], range=["circle", "diamond"]),
            legend=alt.Legend(symbolFillColor="@ink", symbolStrokeColor="@ink"),
        ),
        tooltip=tip,
    )
    return _wide(alt.layer(intervals, points), _ROW_HEIGHT * len(order) * (1.25 if len(modes) > 1 else 1))


def candidates_chart(candidates: Sequence[Row], baseline: float | None, score: str) -> Chart:
    """The candidates' selection returns by training step, one line per arm, draw and beta.

    The annotator's labels stand out from the other arms, which are thin and pale behind them. The area of a point is
    the number of episodes that its mean rests on, where that is known.
    """
    rows = [
        row
        | {"name": arm_name(row["arm"]), "line": f"{row['refinement_id']} {row['beta']}", "own": row["arm"] == "labels"}
        for row in sorted(candidates, key=lambda row: row["arm"] == "labels")
    ]
    base = alt.Chart(_data(rows)).encode(
        x=alt.X(
            "step:Q",
            title="training steps of the candidate",
            scale=alt.Scale(type="log", nice=False, padding=12),
            axis=alt.Axis(values=sorted({row["step"] for row in rows}), format="d", grid=False),
        ),
        y=alt.Y("return_:Q", title=score, scale=alt.Scale(zero=False)),
        color=_arm_colour(rows),
        detail="line:N",
    )
    tip = [
        alt.Tooltip("name:N", title="arm"),
        alt.Tooltip("draw:Q", title="draw"),
        alt.Tooltip("step:Q", title="steps"),
        alt.Tooltip("beta:Q", title="beta"),
        alt.Tooltip("return_:Q", title=score, format=".2f"),
    ]
    counts = sorted({row["episodes"] for row in rows if row["episodes"]})
    size = alt.value(36)
    if counts:
        tip.append(alt.Tooltip("episodes:Q", title="episodes"))
        scale = alt.Scale(domain=[0, counts[-1]], range=[0, 90])
        size = alt.Size("episodes:Q", scale=scale, legend=None)
    dash = alt.StrokeDash("beta:N", title=None, legend=alt.Legend(labelExpr="'beta ' + datum.label", symbolSize=220))
    lines = base.mark_line().encode(strokeDash=dash, strokeWidth=_own_or(2.5, 1), opacity=_own_or(1, PALE), tooltip=tip)
    points = base.mark_point(filled=True).encode(size=size, opacity=_own_or(1, PALE), tooltip=tip)
    rings = base.transform_filter("datum.chosen").mark_point(size=190, strokeWidth=2)
    chosen = rings.encode(opacity=_own_or(1, 2 * PALE), tooltip=tip)
    layers: list[Any] = [lines, points, chosen]
    if baseline is not None:
        level = alt.Chart(_data([{"return_": baseline}]))
        layers.insert(0, level.mark_rule(strokeDash=[2, 3], color="@muted").encode(y="return_:Q"))
    return _wide(alt.layer(*layers), 260)


PALE = 0.3
"""Opacity of what another arm did, beside the annotator's labels."""


def _own_or(own: float, other: float) -> Any:
    """One value for the annotator's labels, another for the other arms."""
    return alt.condition("datum.own", alt.value(own), alt.value(other))


def positions_chart(rows: Sequence[Row]) -> Chart:
    """The labels' positions in their episodes."""
    chart = alt.Chart(_data(rows)).mark_bar()
    return _wide(
        chart.encode(
            x=alt.X(
                "from:Q",
                bin="binned",
                title="position in the episode (%)",
                scale=alt.Scale(domain=[0, 100]),
                axis=alt.Axis(values=[0, 25, 50, 75, 100], grid=False),
            ),
            x2="to:Q",
            y=alt.Y("labels:Q", title="labels", axis=alt.Axis(tickMinStep=1, tickCount=4)),
            color=_stance_colour(rows),
            tooltip=["stance:N", "labels:Q", alt.Tooltip("from:Q", title="from %"), alt.Tooltip("to:Q", title="to %")],
        ),
        180,
    )


def states_chart(x: Row, y: Row, states: Sequence[Row]) -> Chart:
    """Labelled states over visited ones, in the plane of two components; the page fills `states` and swaps the axes.

    Args:
        x: name, unit and place of the component across.
        y: the same of the one upwards.
        states: the points, for their stances only.
    """
    base = alt.Chart(alt.NamedData(name="states")).encode(
        x=alt.X(
            f"c{x['place']}:Q", title=axis_title(x), scale=alt.Scale(zero=False), axis=alt.Axis(grid=False, tickCount=6)
        ),
        y=alt.Y(
            f"c{y['place']}:Q", title=axis_title(y), scale=alt.Scale(zero=False), axis=alt.Axis(grid=False, tickCount=6)
        ),
    )
    visited = base.mark_circle(size=9, opacity=0.35, color="@faint").transform_filter("datum.stance == 'visited'")
    labelled = (
        base.mark_point(filled=True, size=34, opacity=0.85)
        .transform_filter("datum.stance != 'visited'")
        .encode(
            color=_stance_colour(states),
            shape=alt.Shape("stance:N", title=None, scale=_scale(_SHAPES, states, "stance")),
        )
    )
    return _wide(alt.layer(visited, labelled), 300)


def confidence_chart(rows: Sequence[Row]) -> Chart:
    """Agreement by stated confidence, one line per comparison."""
    base = alt.Chart(_data(rows)).encode(
        x=alt.X(
            "confidence:Q",
            title="confidence that the annotator states",
            scale=alt.Scale(zero=False, nice=True, padding=8),
            axis=alt.Axis(format=".2~f", tickCount=5, grid=False),
        ),
        color=alt.Color(
            "question:N", title=None, scale=_scale(_QUESTION_COLOURS, rows, "question"), legend=alt.Legend(columns=1)
        ),
    )
    tip = [
        alt.Tooltip("question:N", title="question"),
        alt.Tooltip("confidence:Q", format=".2f"),
        alt.Tooltip("share:Q", format=".0%"),
        alt.Tooltip("n:Q", title="labels"),
    ]
    y = alt.Y(
        "low:Q", title="share of labels", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%", tickCount=5)
    )
    intervals = base.mark_rule(strokeWidth=2, opacity=0.6).encode(y=y, y2="high:Q", tooltip=tip)
    lines = base.mark_line(strokeWidth=1, opacity=0.5).encode(y="share:Q")
    points = base.mark_point(filled=True, opacity=1).encode(
        y="share:Q", tooltip=tip, size=alt.Size("n:Q", title="labels", scale=alt.Scale(range=[30, 220]), legend=None)
    )
    return _wide(alt.layer(lines, intervals, points), 220)


def _arm_colour(rows: Sequence[Row], *, legend: bool = True) -> Any:
    colours = {arm_name(arm): colour for arm, colour in _ARM_COLOURS.items()}
    shown: Any = alt.Undefined if legend else None
    return alt.Color("name:N", title=None, scale=_scale(colours, rows, "name"), legend=shown)


def _stance_colour(rows: Sequence[Row]) -> Any:
    return alt.Color("stance:N", title=None, scale=_scale(STANCE_COLOURS, rows, "stance"))


def _scale(values: Mapping[str, str], rows: Sequence[Row], field: str) -> alt.Scale:
    """A scale of the names that occur, so that a legend shows no others."""
    present = {row[field] for row in rows}
    shown = {name: value for name, value in values.items() if name in present}
    return alt.Scale(domain=list(shown), range=list(shown.values()))


def _data(rows: Sequence[Row]) -> alt.Data:
    """A chart's own data: a tuple, since a list is copied to the depth of its rows with every chart made of it."""
    return alt.Data(values=tuple(rows))


def _wide(chart: Any, height: float) -> Any:
    """A chart as wide as its place on the page."""
    return chart.properties(
        width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )


def timeline_chart(components: Sequence[Row]) -> alt.VConcatChart:
    """The episode viewer's lanes: return so far, reward, and each component, over the same steps.

    Named data that the page fills: `logged` and `rematch` (t, r, g, c0 ...), `notes` (t, stance).

    Args:
        components: name and unit of each, in their order.
    """
    lanes = [("g", "return so far", ""), ("r", "reward", "")]
    lanes += [(f"c{n}", str(component["name"]), str(component["unit"])) for n, component in enumerate(components)]
    charts = [_lane(name, title, unit, last=n == len(lanes) - 1) for n, (name, title, unit) in enumerate(lanes)]
    return alt.vconcat(*charts, spacing=6).resolve_scale(x="shared", color="independent")


def axis_title(component: Row) -> str:
    """A component's name with its unit."""
    return f"{component['name']}, {component['unit']}" if component["unit"] else str(component["name"])


def _lane(name: str, title: str, unit: str, *, last: bool) -> Any:
    x: Any = alt.X(
        "t:Q",
        title="step of the episode" if last else None,
        scale=alt.Scale(nice=False, zero=True),
        axis=alt.Axis(grid=False, labels=last, ticks=last, domain=last, tickCount=8, format="d"),
    )
    y: Any = alt.Y(
        f"{name}:Q",
        title=None,
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(tickCount=2, grid=False, minExtent=44, maxExtent=44, format=".3~g", labelFontSize=10),
    )
    interpolate: Any = "step-after" if name == "r" else "linear"
    notes = alt.Chart(alt.NamedData(name="notes")).mark_rule(strokeWidth=1, opacity=0.5)
    logged = alt.Chart(alt.NamedData(name="logged")).mark_line(strokeWidth=1.3, color="@ink", interpolate=interpolate)
    rematch = alt.Chart(alt.NamedData(name="rematch")).mark_line(
        strokeWidth=1.3, color="@labels", interpolate=interpolate
    )
    stances = alt.Scale(domain=list(STANCE_COLOURS), range=list(STANCE_COLOURS.values()))
    return alt.layer(
        notes.encode(x=alt.X("t:Q"), color=alt.Color("stance:N", scale=stances, legend=None)),
        rematch.encode(x=x, y=y),
        logged.encode(x=x, y=y),
    ).properties(
        width=600,
        height=_LANE_HEIGHT,
        title=alt.TitleParams(
            f"{title}, {unit}" if unit else title, anchor="start", fontSize=11, offset=3, frame="group"
        ),
    )
