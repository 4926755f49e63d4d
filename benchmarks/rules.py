"""Corrective rules of a language model: what they cover, and how far they agree with an expert controller.

    python benchmarks/rules.py            (half a minute; no key, no network)

The shipped LunarLander example is taken into a temporary store with the recorded rules. Each rule is compared with
Gymnasium's own heuristic on all steps where it decides, and so is the logged action. The expert only judges; the model
that wrote the rules may well know it from its training, so agreement says that the rules are good, not that the model
found them alone. What a policy learns from them is judged by `trajnote refine --rules`; nothing is trained here.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from prompt_cost import lander_expert
from rich.console import Console
from rich.table import Table

from annotate.prompting.requests import AnnotateConfig
from flows.demo import EXAMPLE, take_example
from flows.labelling.annotation import LabelConfig, label
from refine.labels.rule_labels import labels_from_rules
from refine.policies.rule_lists import CompiledRules
from storage.annotations.rules import load_rule_lists, summarise_rules
from storage.datasets.reader import read_manifest, read_steps
from storage.store import Store


def main() -> None:
    """Print one line for each rule, and one for all."""
    started = time.monotonic()
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store")
        dataset_id = take_example(store, EXAMPLE).dataset_id
        asked = AnnotateConfig(model="claude", kind="rules")
        label(store, dataset_id, LabelConfig(provider="recorded", answers=EXAMPLE / "rules.jsonl", annotate=asked))
        (listed,), steps = load_rule_lists(store, dataset_id), read_steps(store, dataset_id)
        manifest = read_manifest(store, dataset_id)
        compiled = CompiledRules.of(listed, manifest)
        labels = labels_from_rules([compiled], steps, manifest.action_space)
        matched = [rule["steps"] for rule in summarise_rules(store, dataset_id, [listed.run_id]).rules]
    rows, deciding, said, rules = labels.rows, labels.rules, labels.suggestions, listed.rules
    expert = lander_expert()
    right = np.array([expert(state) for state in steps.observation[rows]])
    agrees, did = said == right, steps.action[rows] == right
    table = Table(title="rules in their order, on the steps where each decides", title_justify="left")
    for column in ("rule", "action", "confidence", "matches", "decides", "expert agrees", "the agent agrees"):
        table.add_column(column, justify="right")
    for number, rule in enumerate(rules):
        own = deciding == number
        shares = [f"{found[own].mean():.0%}" if own.any() else "" for found in (agrees, did)]
        counts = [str(matched[number]), str(own.sum())]
        table.add_row(str(number + 1), rule.suggested_label, f"{rule.confidence:g}", *counts, *shares)
    console.print(table)
    total = np.count_nonzero(~steps.is_final)
    console.print(
        f"{len(rules)} rules label {len(rows)} of {total} steps ({len(rows) / total:.1%}); gymnasium's heuristic "
        f"agrees with {agrees.mean():.1%} of the labels and with {did.mean():.1%} of the agent's actions there"
    )
    in_air = ~(steps.observation[rows][:, 6:8] > 0).any(axis=1)
    console.print(
        f"without a leg on the ground ({in_air.sum()} steps): {agrees[in_air].mean():.1%} and {did[in_air].mean():.1%}"
    )
    console.print(f"{time.monotonic() - started:.0f} seconds")


if __name__ == "__main__":
    main()
