"""Where everything came from: dollars, ancestors, prompts, settings, and the commands that make it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from annotate.costs import ASSESSMENT_TOKENS, OUTPUT_TOKENS_PER_LABEL, Tokens, price
from annotate.prompting import AnnotateConfig
from refine.config import RefineConfig
from refine.evaluation import OpeConfig
from storage.schema import Manifest

from ..labelling import PERSON
from ..refinement import EstimateConfig, GateConfig
from .facts import Facts, Row, number, read_object, when


def spending_rows(facts: Facts) -> list[Row]:
    """Dollars and tokens of each run, planned and spent."""
    questions = {row["run_id"]: row for row in facts.questions}
    runs = {row["run_id"]: row for row in facts.runs}
    return [_spending_row(row, questions.get(row["run_id"]), runs[row["run_id"]]) for row in facts.spending]


def _spending_row(spent: Row, asked: Row | None, run: Row) -> Row:
    planned = _planned(asked, run)
    return {
        "run_id": spent["run_id"],
        "model": spent["model"] or "",
        "recorded": bool(run["recorded"]),
        "requests": spent["requests"],
        "responses": spent["responses"],
        "tokens": _tokens(spent),
        "planned": "no list price" if planned is None else f"${planned:,.2f}",
        "spent": f"${spent['cost_usd']:,.2f}",
        "per_label": "–" if not spent["cost_per_label"] else f"${spent['cost_per_label']:,.4f}",
        "labels": spent["annotations"],
    }


def _tokens(spent: Row) -> str:
    taken = spent["input_tokens"] + spent["cache_write_tokens"] + spent["cache_read_tokens"]
    return f"{number(taken, 0)} / {number(spent['output_tokens'], 0)}" if taken else "not reported"


def _planned(asked: Row | None, run: Row) -> float | None:
    """A run's dollars at list price, as estimated before sending; None without a price."""
    if asked is None or asked["input_tokens_estimate"] is None or run["model"] is None:
        return None
    labels = read_object(run["config"]).get("windows") or read_object(run["config"]).get("rules", 0)
    output = asked["requests"] * (ASSESSMENT_TOKENS + labels * OUTPUT_TOKENS_PER_LABEL)
    return price(
        run["model"], Tokens(input=asked["input_tokens_estimate"], output=output), batch=run["provider"] == "batch"
    )


def lineage_rows(facts: Facts) -> list[Row]:
    """From the policy in force back to the rollouts, each with its origin."""
    manifest = facts.manifest
    chain = [_ancestor(row) for row in facts.policies]
    chain += [
        {
            "kind": "labels",
            "name": run["run_id"],
            "facts": [
                ("annotator", f"{run['model'] or 'unknown'} ({run['provider']})"),
                ("prompts", run["prompt_version"] or ""),
                ("card", (run["card_sha256"] or "")[:16]),
                ("finished", when(run["finished_at"])),
            ],
        }
        for run in facts.runs
    ]
    exact = [row for row in facts.replays if row["exact"]]
    chain.append(
        {
            "kind": "rollouts",
            "name": manifest.dataset_id,
            "facts": [
                ("environment", manifest.env_id or "none"),
                ("acted", f"{manifest.policy or 'unknown'} ({manifest.policy_mode or 'unknown mode'})"),
                ("weights", (manifest.policy_sha256 or "")[:16]),
                ("episodes", f"{manifest.episodes}, {number(manifest.steps, 0)} steps"),
                ("shards", ", ".join(f"{shard.name} {shard.sha256[:12]}" for shard in manifest.shards[:3])),
                ("replayed", f"{len(exact)} of {len(facts.replays)} episodes exactly" if facts.replays else "not yet"),
            ],
        }
    )
    return chain


def _ancestor(policy: Row) -> Row:
    config = read_object(policy["config"])
    made = "the rules themselves" if config.get("rules") else f"step {config.get('step')}, beta {config.get('beta')}"
    where = f"arm {config['arm']}, {made}" if "arm" in config else ""
    return {
        "kind": "policy" if policy["kind"] == "refined" else "baseline",
        "name": policy["policy_id"],
        "facts": [("made", where), ("weights", policy["sha256"][:16]), ("entered", when(policy["created_at"]))],
    }


def prompt_row(row: Row) -> Row:
    """One request in readable form: the system part and the first message."""
    body = read_object(row["body"])
    messages = body.get("messages") or [{}]
    return {
        "kind": row["kind"],
        "n": row["n"],
        "version": row["prompt_version"] or "",
        "system": _text(body.get("system")),
        "message": _text(messages[0].get("content")),
    }


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n\n".join(str(block.get("text", "")) for block in content if isinstance(block, dict))
    return str(content or "")


class Setting(NamedTuple):
    """One setting in words."""

    name: str
    meaning: str  # empty where the name says it
    value: str


class Settings(NamedTuple):
    """The settings of one part of the work: those that somebody chose, and those left at their defaults."""

    title: str
    chosen: list[Setting]
    usual: list[Setting]


def configuration_tables(facts: Facts) -> list[Settings]:
    """Tables of settings, each in the words of the class that it configures."""
    manifest = facts.manifest
    config = read_object(facts.judged["config"]) if facts.judged else {}
    estimate: Mapping[str, Any] = config.get("estimate") or {}
    facts_of = {
        "Environment": manifest.env_id,
        "Arguments of the environment": dict(manifest.env_kwargs) or None,
        "Most steps of an episode": manifest.max_steps,
    }
    tables = [
        _in_words("How the policy was trained", config.get("refine"), RefineConfig),
        _in_words("How the gate judged it", config.get("gate"), GateConfig),
        _in_words("How returns were estimated", estimate, EstimateConfig, OpeConfig),
        *(
            _in_words(f"What {run['model'] or 'the annotator'} was asked ({run['run_id']})", asked, AnnotateConfig)
            for run in facts.runs
            for asked in [read_object(run["config"])]
        ),
        _in_words("Where the agent acted", facts_of),
        _in_words("Versions when the episodes were collected", dict(manifest.versions)),
        _in_words("Hashes of the environment's code", dict(manifest.environment_code)),
    ]
    return [table for table in tables if table.chosen or table.usual]


def _in_words(title: str, config: Mapping[str, Any] | None, *classes: type[BaseModel]) -> Settings:
    """Settings with the descriptions of their fields; what no class describes keeps its name."""
    described = {name: field for kind in classes for name, field in kind.model_fields.items()}
    chosen: list[Setting] = []
    usual: list[Setting] = []
    for name, value in (config or {}).items():
        field = described.get(name)
        if value is None or (field is None and value in ({}, [])):
            continue
        default = field.get_default(call_default_factory=True) if field and not field.is_required() else None
        words = name.replace("_", " ").capitalize() if field else name
        setting = Setting(words, _meaning(field), _said(value))
        (usual if value == default else chosen).append(setting)
    return Settings(title, chosen, usual)


def _meaning(field: FieldInfo | None) -> str:
    """A field's description, without what it says about leaving the field empty."""
    return ((field and field.description) or "").split("; null:")[0]


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_said(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_said(item)}" for name, item in value.items())
    return str(value)


def tell_origin(facts: Facts) -> list[tuple[str, list[str]]]:
    """What a reader needs who has only the page: the episodes, who wrote the notes and when, and what for.

    Returns:
        Headings with their sentences; none before anybody wrote notes.
    """
    manifest, runs = facts.manifest, facts.runs
    if not runs:
        return []
    where = f" of {manifest.env_id}" if manifest.env_id else ""
    actor = f", played by {manifest.policy}" if manifest.policy else ""
    how = "recorded" if manifest.source == "collect" else "imported"
    episodes = f"{manifest.episodes} episodes{where}{actor}, {how} on {manifest.created_at[:10]}."
    parts = [("The episodes", [episodes]), ("Who wrote, and when", [_author(run) for run in runs])]
    if any(run["labels"] for run in runs):
        note = (
            "A label is a note on one step of one episode: the action to take there, a grade of the action "
            "that was taken (−1 to 1), whether the step is critical, a confidence, and the reason in words."
        )
        parts.insert(1, ("A label", [note]))
    if any(run["rules"] for run in runs):
        rule = (
            "A rule is a condition on the state with the action to take where it holds; it gives a label to each step "
            "that matches."
        )
        parts.insert(len(parts) - 1, ("A rule", [rule]))
    if facts.comparison is not None:
        parts.append(("Purpose", [_purpose(facts.estimated, facts.comparison)]))
    return parts


def _purpose(estimated: bool, comparison: Row) -> str:
    judged = "were estimated from the episodes" if estimated else "played the same new episodes"
    return (
        "The refined policy starts from the weights that played the episodes and is trained to follow the labels. The "
        "other arms get the same training with meaningless labels, or none, to show whether it is the labels that "
        f"help. All of them {judged}; judged on {when(comparison['created_at'])}."
    )


def _author(run: Row) -> str:
    """Who made a run's notes, how many, and on which days."""
    wrote = [f"{run[what]} {name}" for what, name in (("labels", "labels"), ("rules", "rules")) if run[what]]
    made = " and ".join(wrote) or "nothing that was stored"
    name = run["model"] or "an unknown annotator"
    if name.startswith(PERSON):
        return f"{name.removeprefix(PERSON)}, a person, wrote {made}; entered on {when(run['created_at'])[:10]}."
    if run["provider"] == "import":
        return f"{made} by {name}, made elsewhere and imported on {when(run['created_at'])[:10]}."
    days = sorted({_day(run, end) for end in ("first", "last")})
    day = " to ".join(days)
    kept = ", in answers that were recorded earlier" if run["recorded"] else ""
    return f"The language model {name} read the episodes as tables of numbers and wrote {made} on {day}{kept}."


def _day(run: Row, end: str) -> str:
    """The day on which a run's first or last reply was written, as its provenance says, or else when it came."""
    date = str(read_object(run[f"{end}_provenance"]).get("date") or "")[:10]
    return date or when(run[f"{end}_received"] or run["created_at"])[:10]


def list_commands(facts: Facts) -> list[str]:
    """Collect, annotate, refine and report, with the options that matter; the first line names the store."""
    manifest = facts.manifest
    commands = ["STORE=trajnote-store", _collect(manifest)]
    commands += [_annotate(row, manifest.dataset_id) for row in facts.runs]
    if facts.judged is not None:
        commands.append(_refine(facts.judged, manifest.dataset_id))
    about = facts.subject.comparison_id or manifest.dataset_id
    return [*commands, f'trajnote report {shlex.quote(about)} --store "$STORE"']


def _collect(manifest: Manifest) -> str:
    if manifest.source == "import" or manifest.env_id is None or manifest.policy is None:
        return f'trajnote import ROWS.parquet --dataset {shlex.quote(manifest.dataset_id)} --store "$STORE"'
    options: dict[str, Any] = {
        "env": manifest.env_id,
        "env-kwargs": json.dumps(dict(manifest.env_kwargs)) if manifest.env_kwargs else None,
        "engine": manifest.engine if manifest.engine != "gymnasium" else None,
        "policy": manifest.policy,
        "mode": manifest.policy_mode,
        "episodes": manifest.episodes,
        "seed": manifest.seed,
        "max-steps": manifest.max_steps,
        "dataset": manifest.dataset_id,
    }
    return _command("collect", options)


def _annotate(run: Row, dataset_id: str) -> str:
    asked = read_object(run["config"])
    if run["provider"] == "import":
        return _import(run, dataset_id)
    provider = run["provider"] if run["provider"] in ("anthropic", "file", "recorded") else None
    options: dict[str, Any] = {
        "provider": provider,
        "answers": "ANSWERS.jsonl" if provider in ("file", "recorded") else None,
        "model": run["model"],
        "labels": asked.get("windows"),
        "kind": asked.get("kind"),
        "max-rules": asked.get("rules"),
        "tables": asked.get("tables"),
        "rows": asked.get("rows"),
        "samples": asked["samples"] if asked.get("samples", 1) != 1 else None,
        "two-stage": True if asked.get("two_stage") else None,
        "dataset": dataset_id,
    }
    return _command("annotate", options)


def _import(run: Row, dataset_id: str) -> str:
    """The command that enters rules or labels that somebody wrote elsewhere."""
    if not run["rules"]:
        return _command("annotations import LABELS.jsonl", {})
    return _command("rules import RULES.json", {"dataset": dataset_id, "model": run["model"]})


def _refine(refinement: Row, dataset_id: str) -> str:
    config = read_object(refinement["config"])
    learner, gate = config.get("refine", {}), config.get("gate", {})
    options: dict[str, Any] = {
        "dataset": dataset_id,
        "use": learner.get("mode"),
        "seed": learner.get("seed"),
        "first-seed": gate.get("first_seed"),
        "select": gate.get("select"),
        "accept": gate.get("accept"),
        "report": gate.get("report"),
        "draws": gate.get("placebo_draws"),
        "gate-mode": gate.get("mode"),
        "gate": gate.get("method"),
        "estimate": True if config.get("basis") == "estimated" else None,
        "accept-estimate": True if config.get("estimate", {}).get("accept") else None,
    }
    runs = "".join(f" \\\n  --run {shlex.quote(run_id)}" for run_id in refinement["run_ids"] or ())
    return _command("refine", options) + runs


_LINE = 42
"""Characters of a command's line, so that a phone shows it whole."""


def _command(name: str, options: Mapping[str, Any]) -> str:
    """A command on as many lines as it needs, each an option or more."""
    parts = [f'trajnote {name} --store "$STORE"']
    for option, value in options.items():
        if value is True:
            parts.append(f"--{option}")
        elif value is not None:
            parts.append(f"--{option} {shlex.quote(str(value))}")
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) < _LINE:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    return " \\\n  ".join(lines)
