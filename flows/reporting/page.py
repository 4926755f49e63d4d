"""The report: one HTML file about a refinement, a comparison, a run or a dataset, made from the store alone.

It opens from the disk, needs no network, and contains everything that it shows.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from storage.disk import seal, visible, write_whole
from storage.errors import Prerequisite, TrajnoteError
from storage.store import Store

from ..labelling import (
    Checkup,
    GoldReport,
    check_labels,
    describe_gain,
    describe_gold,
    describe_rivalry,
    score_by_readers,
    score_rows,
)
from ..refinement import CHANCE
from ..runtime import Report, silent
from ..simulation import Named
from .facts import (
    Facts,
    Row,
    action_table,
    arm_name,
    find_subject,
    gather_facts,
    interval_of,
    load_labels,
    number,
    plain_reason,
    read_object,
    sample_states,
    script_json,
    spread,
    state_rows,
    units_shown,
)
from .origins import (
    configuration_tables,
    lineage_rows,
    list_commands,
    prompt_row,
    spending_rows,
    tell_origin,
)

if TYPE_CHECKING:
    from .episodes import Viewer

PICTURES = 1_600
"""Default number of pictures of single steps in one report."""
_STATES = 1_500  # points of the state space with a label at most; without one as `report/states.sql` has it


@dataclass(frozen=True)
class Written:
    """A written report."""

    path: Path
    bytes: int
    dataset_id: str
    comparison_id: str | None
    labels: int
    episodes: int  # in the viewer
    pictures: int


def write_report(
    store: Store,
    name: str | None = None,
    *,
    out: Path | None = None,
    pictures: int = PICTURES,
    env_id: Named | None = None,
    report: Report = silent,
) -> Written:
    """Write the report of what a name means; replaces an older one.

    Args:
        store: the store.
        name: id of a refinement, comparison, run or dataset, or its beginning; the newest comparison when None.
        out: the file; `reports/<id>.html` of the store when None.
        pictures: pictures of single steps at most; 0 renders nothing.
        env_id: the dataset's environment, if the user has to name it.
        report: shown the progress.

    Raises:
        BadInput: if the name fits nothing, or several.
        Prerequisite: if the store is empty, or the extra `plots` is not installed.
    """
    try:
        from . import charts, episodes

        library = _vega_bundle()
    except ImportError as error:
        raise Prerequisite(
            f"A report needs Altair, vl-convert and Pillow ({error}).", "pip install 'trajnote[plots]'"
        ) from error
    with store.catalog.read():
        about = find_subject(store, name)
        known = gather_facts(store, about)
        found = load_labels(store, known)
        visited = sample_states(store, about.dataset_id) if found else []
        checkups = check_labels(store, about.dataset_id, about.run_ids) if found else []
        gold = score_by_readers(store, about.dataset_id, about.run_ids)
    viewer = episodes.build_viewer(
        store, known, found, pictures, units=units_shown(store, known), env_id=env_id, report=report
    )
    states = state_rows(found, visited, len(viewer.components), _STATES)
    context = tell(known, found, checkups, gold)
    drawn = charts.draw_all(known, found, checkups=checkups, components=viewer.components, states=states)
    content = seal(render_page(context, drawn, viewer, library=library).encode())
    path = out or store.reports_dir / f"{about.name}.html"
    write_whole(path, content)
    return Written(
        path, len(content), about.dataset_id, about.comparison_id, len(found), len(viewer.entries), viewer.picture_count
    )


TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
_SCRIPTS = ("theme.js", "charts.js", "viewer.js", "copy.js")
_SNIPPET = "window.vegaEmbed = vegaEmbed;"


def render_page(story: Mapping[str, Any], charts: Mapping[str, Any], viewer: Viewer, *, library: str) -> str:
    """Render one self-contained HTML document.

    Args:
        story: texts and tables, see `tell`.
        charts: for the scripts: `specs` by name, and the data of those that change.
        viewer: the episodes.
        library: JavaScript of Vega-Lite.
    """
    scripts = [library, *read_parts(_SCRIPTS)]
    listed = {
        "components": viewer.components,
        "episodes": [entry.summary for entry in viewer.entries],
        "opponent": viewer.opponent.policy_id if viewer.opponent else None,
    }
    known = {"story": story, "viewer": viewer}
    return fill_page("report", ["report.css"], scripts, {"charts_json": charts, "viewer_json": listed}, known)


def read_parts(names: Sequence[str]) -> list[str]:
    """The texts of files beside the templates: styles or scripts."""
    return [(TEMPLATES / name).read_text(encoding="utf-8") for name in names]


def fill_page(
    name: str, styles: Sequence[str], scripts: Sequence[str], data: Mapping[str, Any], known: Mapping[str, Any]
) -> str:
    """Fill a template; Jinja escapes everything and makes deceptive characters visible.

    Args:
        name: of the template, without its ending.
        styles: names of style sheets.
        scripts: JavaScript; nothing else may run in the page.
        data: for the scripts, by the name in the template.
        known: what the template shows.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html").render(
        policy=content_policy(scripts),
        style=Markup("\n".join(read_parts(styles))),
        scripts=[Markup(script) for script in scripts],
        **{part: Markup(script_json(value)) for part, value in data.items()},
        **known,
    )


def _finalize(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    return "" if value is None else visible(value) if isinstance(value, str) else value


def content_policy(scripts: Sequence[str]) -> str:
    """A content security policy: only these scripts, pictures from the page itself, no connections."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def _vega_bundle() -> str:
    """The text; the same for the same version of vl-convert.

    Raises:
        TrajnoteError: if it contains anything that would end a script element.
    """
    version = importlib.metadata.version("vl-convert-python")
    kept = _cache_folder() / f"vega-{version}.js"
    with suppress(OSError, UnicodeDecodeError):
        if text := kept.read_text(encoding="utf-8"):
            return text
    import vl_convert  # a second, and only where the text is not kept

    text = vl_convert.javascript_bundle(_SNIPPET)
    if "</script" in text.lower() or "<!--" in text:
        raise TrajnoteError(f"vl-convert {version} has JavaScript that cannot be embedded in a page.")
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, text.encode())
    return text


def _cache_folder() -> Path:
    """The user's cache folder (XDG base directory specification)."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "trajnote"


def tell(facts: Facts, labels: Sequence[Row], checkups: Sequence[Checkup], gold: GoldReport | None = None) -> Row:
    """All texts and tables of the page.

    Args:
        facts: what the catalog says.
        labels: as loaded, for their counts.
        checkups: what was measured about each run's labels.
        gold: what a trusted reader's answers say of them.
    """
    manifest = facts.manifest
    return {
        "title": manifest.env_id or manifest.dataset_id,
        "dataset_id": manifest.dataset_id,
        "estimated": facts.estimated,
        "headline": _headline(facts),
        "verdicts": _verdicts(facts),
        "gate": _gate(facts),
        "arms": _arms(facts.arms),
        "labels": _label_counts(labels, facts),
        "checkups": [_checkup(checkup, len(checkups) > 1, facts.gained) for checkup in checkups],
        "gold": _gold(gold) if gold else None,
        "rejections": _rejections(facts.rejections),
        "rules": [_rule(number, row) for number, row in enumerate(facts.rules, 1)],
        "ruled": facts.ruled,
        "spending": spending_rows(facts),
        "lineage": lineage_rows(facts),
        "prompts": [prompt_row(row) for row in facts.prompts],
        "origin": tell_origin(facts),
        "configuration": configuration_tables(facts),
        "commands": list_commands(facts),
        "level": facts.level,
        "action_table": action_table(labels, manifest.action_space, manifest.action_names),
    }


def _headline(facts: Facts) -> Row | None:
    """Returns of the baseline and of the policy in force, in the gate's mode."""
    mode = _gate_mode(facts)
    rows = {row["arm"]: row for row in facts.arms if row["mode"] == mode}
    arm = facts.judged["arm"] if facts.judged else "labels"
    if "baseline" not in rows or arm not in rows:
        return None
    return {
        "mode": mode,
        "arm": arm_name(arm),
        "own": arm == "labels",
        "before": number(rows["baseline"]["return_"]),
        "after": number(rows[arm]["return_"]),
        "before_interval": interval_of(rows["baseline"]),
        "after_interval": interval_of(rows[arm]),
        "episodes": rows[arm]["episodes"],
        "labels": rows[arm]["labels"],
    }


def _verdicts(facts: Facts) -> list[Row]:
    found = facts.comparison
    if found is None:
        return []
    return [
        {
            "question": "Is the policy estimated to be better than the baseline?"
            if facts.estimated
            else "Is the policy better than the baseline?",
            "holds": found["better"],
            "answer": "yes" if found["better"] else "not shown",
            "reason": plain_reason(found["better_reason"]),
        },
        {
            "question": "Was it the labels, as far as estimates go?" if facts.estimated else "Did the labels do it?",
            "holds": found["credit"],
            "answer": found["credit_answer"],
            "reason": plain_reason(found["credit_reason"]),
        },
    ]


def _gate(facts: Facts) -> Row | None:
    judged = facts.judged
    if judged is None:
        return None
    own = [row for row in facts.candidates if row["refinement_id"] == judged["refinement_id"]]
    chosen = next((row for row in own if row["chosen"]), None)
    gate = read_object(judged["config"]).get("gate", {})
    return {
        "accepted": judged["accepted"],
        "reason": plain_reason(judged["reason"]),
        "arm": arm_name(judged["arm"]),
        "candidates": len(own),
        "chosen": chosen,
        "chosen_return": number(chosen["return_"], 2 if facts.estimated else 1) if chosen else "",
        "select": gate.get("select"),
        "accept": gate.get("accept"),
        "report": gate.get("report"),
        "placebos": [row for row in facts.refinements if row["arm"] != "labels"],
    }


def _arms(arms: Sequence[Row]) -> list[Row]:
    """One row per arm, the best first: labels, acceptances, and the returns in both modes."""
    names = list(
        dict.fromkeys(row["arm"] for row in sorted(arms, key=lambda row: (row["mode"] != "greedy", -row["return_"])))
    )
    by_mode = {(row["arm"], row["mode"]): row for row in arms}
    modes = [mode for mode in ("greedy", "sampled") if any(row["mode"] == mode for row in arms)]
    table: list[Row] = []
    for arm in names:
        rows = [by_mode.get((arm, mode)) for mode in modes]
        first = next(row for row in rows if row is not None)
        gate = _gate_of(first)
        cells = [(mode, spread(row) if row else "–") for mode, row in zip(modes, rows, strict=True)]
        table.append({"arm": arm_name(arm), "key": arm, "labels": first["labels"], "gate": gate, "returns": cells})
    return table


def _gate_of(row: Row) -> str:
    """How many trainings of an arm were accepted; draws of chance are not tested."""
    if not row["draws"]:
        return "–"
    return f"{row['draws']} draws" if row["arm"] in CHANCE else f"{row['accepted']} of {row['draws']}"


def _label_counts(labels: Sequence[Row], facts: Facts) -> Row:
    compared = [row for row in labels if row["agrees"] is not None]
    measured = [row for row in labels if row["advantage"] is not None]
    return {
        "n": len(labels),
        "critical": sum(bool(row["critical"]) for row in labels),
        "confirmed": sum(bool(row["agrees"]) for row in compared),
        "compared": len(compared),
        "episodes": len({row["episode_id"] for row in labels}),
        "episodes_in_all": facts.manifest.episodes,
        "measured": len(measured),
        "models": sorted({row["model"] for row in labels}),
    }


def _checkup(checkup: Checkup, named: bool, gained: bool) -> Row:
    """The verdict of the labels; measures that are bad say no more than that where the gate has accepted a gain."""
    name = f"{checkup.quality.run_id}: " if named else ""
    verdict: str = checkup.judgement.verdict
    if gained and verdict.startswith("unfit"):
        verdict = "doubtful by these measures alone; the gate accepted what was trained with them"
    return {"verdict": f"{name}{verdict}", "reasons": checkup.judgement.reasons}


def _gold(found: GoldReport) -> Row:
    """The gold set in words, and a table for each run."""
    runs = [
        {"name": f"{score.run_id}, {score.model}", "verdict": describe_gain(score), "rows": score_rows(score)}
        for score in found.scores
    ]
    return {"about": describe_gold(found), "runs": runs, "pairs": list(map(describe_rivalry, found.rivalries))}


def _rejections(rows: Sequence[Row]) -> list[Row]:
    return [row | {"raw": (row["raw"] or "")[:600], "reason": row["reason"].replace("_", " ")} for row in rows]


def _rule(number: int, row: Row) -> Row:
    logged, labels = row["agrees_with_logged"], row["agrees_with_labels"]
    return {
        "number": number,
        "predicate": row["predicate"],
        "action": row["suggested_label"],
        "confidence": "–" if row["confidence"] is None else f"{row['confidence']:.2f}",
        "coverage": f"{row['coverage']:.1%}",
        "decides": row["decides"],
        "logged": "–" if logged is None else f"{logged:.0%}",
        "labels": "–" if labels is None else f"{labels:.0%} of {row['labels']}",
        "rationale": row["rationale"] or "",
    }


def _gate_mode(facts: Facts) -> str:
    config = read_object(facts.judged["config"]) if facts.judged else {}
    return str(config.get("gate", {}).get("mode", "greedy"))
