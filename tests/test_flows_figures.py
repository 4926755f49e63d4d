"""Pictures of a comparison: what the catalog holds is what is drawn, in colours that everybody can tell apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flows.reporting.figures import draw_figures
from storage.catalog import insert_rows
from storage.errors import Prerequisite
from storage.store import Store

pytest.importorskip("vl_convert")

ARMS = {"baseline": 10.0, "labels": 200.0, "no_labels": 12.0, "shuffled": 90.0, "random": -30.0}


def compare(store: Store, comparison_id: str, env_id: str = "LunarLander-v3", *, backwards: bool = False) -> None:
    """A comparison as `refine` leaves it, in few rows."""
    comparison: dict[str, Any] = {
        "comparison_id": comparison_id,
        "dataset_id": "d1",
        "env_id": env_id,
        "baseline_id": "b",
        "policy_id": "p",
        "recipe": "A",
        **dict.fromkeys(("accepted", "better", "credit"), True),
        **dict.fromkeys(("reason", "better_reason", "credit_reason"), "because"),
    }
    counts = {"labels": 8, "draws": 1, "accepted": 1, "episodes": 100}
    arms = [
        {"comparison_id": comparison_id, "arm": arm, "mode": mode, **counts}
        | {"return_": mean, "low": mean - 5, "high": mean + 5}
        for arm, mean in ARMS.items()
        for mode in ("greedy", "sampled")
    ]
    refinements = [
        {"refinement_id": f"{comparison_id}-{arm}", "comparison_id": comparison_id, "dataset_id": "d1", "arm": arm}
        for arm in list(ARMS)[1:]
    ]
    candidates = [
        {"refinement_id": f"{comparison_id}-{arm}", "number": number, "policy_id": "p", "chosen": number == 1}
        | {"step": step, "beta": 0.1, "return_": ARMS[arm] - step}
        for arm in list(ARMS)[1:]
        for number, step in enumerate((30, 60, 100))
    ]
    with store.catalog.write() as con:
        insert_rows(con, "comparisons", [comparison])
        insert_rows(con, "arms", arms[::-1] if backwards else arms)
        insert_rows(con, "refinements", refinements)
        insert_rows(con, "candidates", candidates)


@pytest.mark.slow
def test_pictures_say_what_they_show_with_units(store: Store, tmp_path: Path) -> None:
    compare(store, "c_1")
    arms, candidates, _ = (path.read_text() for path in draw_figures(store, tmp_path / "pictures"))
    for words in ("baseline", "refined", "no_labels", "shuffled", "random", "greedy", "sampled", "LunarLander-v3, d1"):
        assert f">{words}<" in arms
    assert "return per episode (sum of rewards)" in arms
    assert "optimizer steps of the refinement" in candidates
    assert "mean return on the selection seeds" in candidates
    assert len(set(re.findall(r"#[0-9A-F]{6}", arms)) & {"#0072B2", "#009E73", "#E69F00", "#CC79A7"}) == 4


@pytest.mark.slow
def test_the_same_comparison_gives_the_same_bytes(store: Store, tmp_path: Path) -> None:
    compare(store, "c_1")
    first = [path.read_bytes() for path in draw_figures(store, tmp_path / "one")]
    assert [path.read_bytes() for path in draw_figures(store, tmp_path / "two")] == first


@pytest.mark.slow
def test_the_order_in_which_arms_were_entered_changes_no_byte(store: Store, tmp_path: Path) -> None:
    compare(store, "c_1")
    other = Store.create(tmp_path / "other")
    compare(other, "c_1", backwards=True)
    first = [path.read_bytes() for path in draw_figures(store, tmp_path / "one")]
    assert [path.read_bytes() for path in draw_figures(other, tmp_path / "two")] == first


@pytest.mark.slow
def test_a_comparison_is_named_by_the_beginning_of_its_id(store: Store, tmp_path: Path) -> None:
    compare(store, "c_1", "CartPole-v1")
    compare(store, "c_2", "Acrobot-v1")
    arms, *_ = draw_figures(store, tmp_path, comparison="c_1", picture_format="png")
    assert arms.name == "arms.png"
    assert arms.read_bytes().startswith(b"\x89PNG")
    assert ">CartPole-v1, d1<" in draw_figures(store, tmp_path, comparison="c_1")[0].read_text()
    with pytest.raises(Prerequisite, match=r"no comparison c_3.*trajnote refine"):
        draw_figures(store, tmp_path, comparison="c_3")


@pytest.mark.slow
def test_the_board_has_the_newest_comparison_of_every_environment(store: Store, tmp_path: Path) -> None:
    compare(store, "c_1", "CartPole-v1")
    compare(store, "c_2", "Acrobot-v1")
    board = draw_figures(store, tmp_path)[2]
    assert board.name == "board.svg"
    for words in ("CartPole-v1", "Acrobot-v1", "refined", "shuffled"):
        assert f">{words}<" in board.read_text()


@pytest.mark.slow
def test_papers_get_pdf(store: Store, tmp_path: Path) -> None:
    compare(store, "c_1")
    files = draw_figures(store, tmp_path, picture_format="pdf")
    assert [file.name for file in files] == ["arms.pdf", "candidates.pdf", "board.pdf"]
    assert all(file.read_bytes().startswith(b"%PDF") for file in files)
