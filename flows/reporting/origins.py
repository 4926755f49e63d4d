"""Where everything came from: dollars, ancestors, prompts, settings, and the commands that make it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from annotate.costs import ASSESSMENT_TOKENS, OUTPUT_TOKENS_PER_LABEL, Tokens, price
from storage.schema import Manifest

from .facts import Facts, Row
from .wording import Pairs, number, pairs_of, read_object, when


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


def configuration_tables(facts: Facts) -> list[tuple[str, Pairs]]:
    """Tables of settings, each with its title."""
    manifest = facts.manifest
    config = read_object(facts.judged["config"]) if facts.judged else {}
    tables: list[tuple[str, Pairs]] = [
        ("Refinement", pairs_of(config.get("refine"))),
        ("Gate", pairs_of(config.get("gate"))),
        ("Estimate", pairs_of(config.get("estimate"))),
        *((f"Annotation {run['run_id']}", pairs_of(read_object(run["config"]))) for run in facts.runs),
        (
            "Environment",
            pairs_of(
                {"env_id": manifest.env_id, "env_kwargs": dict(manifest.env_kwargs), "max_steps": manifest.max_steps}
            ),
        ),
        ("Versions when collected", pairs_of(dict(manifest.versions))),
        ("Code when collected", pairs_of(dict(manifest.environment_code))),
    ]
    return [(title, pairs) for title, pairs in tables if pairs]


def list_commands(facts: Facts) -> list[str]:
    """Collect, annotate, refine and report, with the options that matter; the store is `$STORE`."""
    manifest = facts.manifest
    commands = [_collect(manifest)]
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
    asked: Mapping[str, Any] = _object(run["config"])
    if "windows" not in asked and asked.get("kind") != "rules":
        return f'trajnote annotations import LABELS.jsonl --store "$STORE"  # run {shlex.quote(run["run_id"])}'
    provider = run["provider"] if run["provider"] in ("anthropic", "file", "recorded") else None
    options: dict[str, Any] = {
        "provider": provider,
        "answers": "ANSWERS.jsonl" if provider in ("file", "recorded") else None,
        "model": run["model"],
        "labels": asked.get("windows"),
        "kind": asked.get("kind"),
        "rules": asked.get("rules"),
        "tables": asked.get("tables"),
        "rows": asked.get("rows"),
        "samples": asked["samples"] if asked.get("samples", 1) != 1 else None,
        "two-stage": True if asked.get("two_stage") else None,
        "dataset": dataset_id,
    }
    return _command("annotate", options)


def _refine(refinement: Row, dataset_id: str) -> str:
    config = _object(refinement["config"])
    learner, gate = config.get("refine", {}), config.get("gate", {})
    options: dict[str, Any] = {
        "dataset": dataset_id,
        "mode": learner.get("mode"),
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
    runs = "".join(f" --run {shlex.quote(run_id)}" for run_id in refinement["run_ids"] or ())
    return _command("refine", options) + runs


def _command(name: str, options: Mapping[str, Any]) -> str:
    parts = [f'trajnote {name} --store "$STORE"']
    for option, value in options.items():
        if value is True:
            parts.append(f"--{option}")
        elif value is not None:
            parts.append(f"--{option} {shlex.quote(str(value))}")
    lines = ["  " + " ".join(parts[start : start + 4]) for start in range(0, len(parts), 4)]
    return " \\\n  ".join(line.strip() for line in lines)


def _object(text: Any) -> dict[str, Any]:
    value = json.loads(text) if isinstance(text, str) else text
    return value if isinstance(value, dict) else {}
