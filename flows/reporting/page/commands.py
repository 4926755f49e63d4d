"""The commands that lead from an empty store to what a report shows, written so that a shell takes them as they are."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from storage.schema import Manifest

from .queries import Facts, Row


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
