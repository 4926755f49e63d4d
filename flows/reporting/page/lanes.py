"""The lanes of the episode viewer: one small chart for each number of a step, all over the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from .queries import Row

STANCE_COLOURS = {"corrects": "@corrects", "confirms": "@confirms", "no suggestion": "@muted"}
"""What a label says of the logged action, and the name of its colour."""
_LANE_HEIGHT = 46


def timeline_chart(components: Sequence[Row]) -> alt.VConcatChart:
    """The episode viewer's lanes: return so far, reward, and each component, all over the same steps.

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
