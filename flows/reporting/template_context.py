"""The values of the report's template: sentences and tables. Charts and episodes are elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from ..labelling import Checkup
from .page.charts import arm_name
from .page.facts import Facts, Row
from .page.labels import action_table
from .page.origins import configuration_tables, lineage_rows, list_commands, prompt_row, spending_rows
from .page.wording import interval_of, number, plain_reason, read_object, spread


def tell(facts: Facts, labels: Sequence[Row], checkups: Sequence[Checkup]) -> Row:
    """All texts and tables of the page.

    Args:
        facts: what the catalog says.
        labels: as loaded, for their counts.
        checkups: what was measured about each run's labels.
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
        "checkups": [_checkup(checkup, len(checkups) > 1) for checkup in checkups],
        "rejections": _rejections(facts.rejections),
        "rules": [_rule(number, row) for number, row in enumerate(facts.rules, 1)],
        "ruled": facts.ruled,
        "spending": spending_rows(facts),
        "lineage": lineage_rows(facts),
        "prompts": [prompt_row(row) for row in facts.prompts],
        "configuration": configuration_tables(facts),
        "commands": list_commands(facts),
        "level": facts.level,
        "action_table": action_table(labels, manifest.action_names) if manifest.action_space.is_discrete else [],
        "action_names": manifest.action_names,
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
            "reason": plain_reason(found["better_reason"]),
        },
        {
            "question": "Was it the labels, as far as estimates go?" if facts.estimated else "Did the labels do it?",
            "holds": found["credit"],
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
        gate = f"{first['accepted']} of {first['draws']}" if first["draws"] else "–"
        cells = [(mode, spread(row) if row else "–") for mode, row in zip(modes, rows, strict=True)]
        table.append({"arm": arm_name(arm), "key": arm, "labels": first["labels"], "gate": gate, "returns": cells})
    return table


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


def _checkup(checkup: Checkup, named: bool) -> Row:
    name = f"{checkup.quality.run_id}: " if named else ""
    return {"verdict": f"{name}{checkup.judgement.verdict}", "reasons": checkup.judgement.reasons}


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
