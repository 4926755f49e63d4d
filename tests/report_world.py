"""A judged toy refinement whose annotator is hostile: what every test of the report looks at.

`Shown-v0` is `Toy-v0` with a picture: a square at the place `(x, y)`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from toy_environment import CARD, Toy, answers_of, gather_toys, small_config

from annotate.cards.cards import load_card
from annotate.prompting.requests import AnnotateConfig
from annotate.runs.plan import plan_run
from flows.labelling.annotation import LabelConfig, label
from flows.refinement.refinement import Outcome, improve
from flows.simulation.trust import Named
from storage.schema import Array
from storage.store import Store

SHOWN = Named("report_world:Shown-v0")
HOSTILE = (
    "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>"
    "<svg onload='window.pwned = 3'><!-- {{ 7 * 7 }} ${window.pwned = 4} javascript:window.pwned=5 "
    "\u202egnp.exe\u2066 <a href='https://example.invalid/'>click</a>"
)
HEIGHT, WIDTH = 40, 60


class Shown(Toy):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> Any:
        picture: Array = np.full((HEIGHT, WIDTH, 3), 240, np.uint8)
        column, row = int((self.seen[0] + 1) / 2 * (WIDTH - 6)), int((1 - self.seen[1]) / 2 * (HEIGHT - 6))
        picture[row : row + 6, column : column + 6] = (0, 114, 178)
        return picture


gymnasium.register("Shown-v0", Shown)


def make_judged_store(factory: pytest.TempPathFactory) -> tuple[Store, Outcome]:
    """Twelve labelled episodes and a comparison; every rationale, and one rejected label, are hostile.

    Made once for all modules of a process, so a test leaves its tables as they are.
    """
    return _make(factory.getbasetemp() / "judged")


@cache
def _make(folder: Path) -> tuple[Store, Outcome]:
    store, dataset_id = make_labelled_store(folder)
    return store, improve(store, dataset_id, small_config(gate={"placebo_draws": 2}))


def make_labelled_store(folder: Path) -> tuple[Store, str]:
    """The same without a comparison, and the id of its dataset."""
    folder.mkdir()
    store = Store.create(folder / "store")
    card = folder / "card.toml"
    card.write_text(CARD.replace("toy_environment:Toy-v0", SHOWN))
    dataset_id = gather_toys(store, folder, SHOWN, card=str(card)).dataset_id
    answers = _write_hostile_answers(store, dataset_id, card, folder / "answers.jsonl")
    config = LabelConfig(
        provider="recorded", answers=answers, card=str(card), annotate=AnnotateConfig(model="<b>toy</b>", windows=8)
    )
    label(store, dataset_id, config)
    return store, dataset_id


def _write_hostile_answers(store: Store, dataset_id: str, card: Path, path: Path) -> Path:
    plan = plan_run(store, dataset_id, load_card(str(card)), AnnotateConfig(model="<b>toy</b>", windows=8))
    lines: list[str] = []
    for request_id, text in answers_of(store, dataset_id, plan.questions).items():
        reply = json.loads(text)
        for entry in reply["labels"]:
            entry["rationale"] = HOSTILE
        reply["labels"][0]["suggested_action"] = "<script>window.pwned = 6</script>"
        lines.append(json.dumps({"request_id": request_id, "text": json.dumps(reply, ensure_ascii=False)}))
    path.write_text("\n".join(lines) + "\n")
    return path
