"""Where everything came from, in tables: dollars, ancestors, prompts and settings."""

from __future__ import annotations

from typing import Any

from annotate.costs import ASSESSMENT_TOKENS, OUTPUT_TOKENS_PER_LABEL, Tokens, price

from .queries import Facts, Row
from .wording import Pairs, number, pairs_of, read_object, when


def tell_spending(facts: Facts) -> list[Row]:
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
    """Dollars at list price for all of a run's requests, as estimated before they were sent; None without a price."""
    if asked is None or asked["input_tokens_estimate"] is None or run["model"] is None:
        return None
    labels = read_object(run["config"]).get("windows") or read_object(run["config"]).get("rules", 0)
    output = asked["requests"] * (ASSESSMENT_TOKENS + labels * OUTPUT_TOKENS_PER_LABEL)
    return price(
        run["model"], Tokens(input=asked["input_tokens_estimate"], output=output), batch=run["provider"] == "batch"
    )


def tell_lineage(facts: Facts) -> list[Row]:
    """From the policy in force back to the rollouts, each with what it is and what it came from."""
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
    where = f"arm {config['arm']}, step {config.get('step')}, beta {config.get('beta')}" if "arm" in config else ""
    return {
        "kind": "policy" if policy["kind"] == "refined" else "baseline",
        "name": policy["policy_id"],
        "facts": [("made", where), ("weights", policy["sha256"][:16]), ("entered", when(policy["created_at"]))],
    }


def tell_prompt(row: Row) -> Row:
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


def tell_configuration(facts: Facts) -> list[tuple[str, Pairs]]:
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
