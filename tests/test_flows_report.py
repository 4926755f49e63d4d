from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest
from report_world import HOSTILE, SHOWN, make_judged_store
from toy_environment import CARD, TOY, gather_toys, right_actions, write_answers, write_labels
from typer.main import get_command

from annotate.importing.labels import import_annotations
from annotate.importing.rules import import_rules
from annotate.prompting.requests import AnnotateConfig
from flows.cli import make_app
from flows.labelling.annotation import LabelConfig, label
from flows.refinement.refinement import Outcome
from flows.reporting.facts import action_table, find_subject
from flows.reporting.page import Written, write_report
from flows.reporting.pictures import Take, film
from flows.simulation.trust import Home
from storage.datasets import read_manifest
from storage.datasets.reader import read_episode, read_steps
from storage.errors import BadInput, Prerequisite
from storage.schema import Episode, Space
from storage.store import Store


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Outcome]:
    return make_judged_store(tmp_path_factory)


@pytest.fixture(scope="module")
def written(judged: tuple[Store, Outcome]) -> Written:
    return write_report(judged[0], pictures=30)


@pytest.fixture(scope="module")
def page(written: Written) -> str:
    return written.path.read_text(encoding="utf-8")


def unpack(page: str, place: int) -> dict[str, Any]:
    found = re.search(rf'id="pack-{place}">([A-Za-z0-9+/=]+)</script>', page)
    assert found
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


def island(page: str, name: str) -> dict[str, Any]:
    found = re.search(rf'id="{name}">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def text_of(page: str) -> str:
    """The page without its scripts."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


@pytest.mark.slow
def test_the_page_lies_in_the_store_and_counts_what_it_shows(judged: tuple[Store, Outcome], written: Written) -> None:
    store, outcome = judged
    assert written.path == store.reports_dir / f"{outcome.comparison_id}.html"
    assert (written.labels, written.episodes, written.pictures) == (84, 12, 30)
    assert written.bytes == written.path.stat().st_size < 1_200_000


@pytest.mark.slow
def test_the_headline_and_the_table_say_what_was_measured(judged: tuple[Store, Outcome], page: str) -> None:
    arms = {arm.arm: arm.greedy for arm in judged[1].comparison.arms}
    assert f'<span class="before">{arms["baseline"].mean:.1f}</span>' in page
    assert f'<span class="after">{arms["labels"].mean:.1f}</span>' in page
    for arm in arms.values():
        assert f"{arm.mean:.1f} [{arm.low:.1f}, {arm.high:.1f}]".replace("-", "−") in page
    assert judged[1].comparison.policy_id in page


@pytest.mark.slow
def test_the_charts_hold_the_catalogs_numbers(judged: tuple[Store, Outcome], page: str) -> None:
    specs = island(page, "charts-data")["specs"]
    drawn = {(row["arm"], row["mode"]): row["return_"] for row in specs["arms"]["data"]["values"]}
    assert drawn["labels", "greedy"] == next(a.greedy.mean for a in judged[1].comparison.arms if a.arm == "labels")
    assert {"arms", "candidates", "positions", "states", "confidence", "timeline"} == set(specs)
    with judged[0].catalog.read() as con:
        kept = con.execute("SELECT episodes FROM candidates ORDER BY refinement_id, number").fetchall()
    (points,) = (layer for layer in specs["candidates"]["layer"] if "size" in layer["encoding"])
    drawn_episodes = [row["episodes"] for row in points["data"]["values"]]
    assert sorted(drawn_episodes) == sorted(count for (count,) in kept)
    assert all(count >= 2 for count in drawn_episodes)


@pytest.mark.slow
def test_every_chart_is_one_that_vega_lite_knows(page: str) -> None:
    colours = re.compile(r'"@[a-z]+"')  # named by the page's palette
    for name, spec in island(page, "charts-data")["specs"].items():
        alt.Chart.from_dict(json.loads(colours.sub('"red"', json.dumps(spec)))).to_dict(validate=True), name


def test_an_episode_has_its_numbers_its_notes_its_reply_and_its_rematch(
    judged: tuple[Store, Outcome], page: str
) -> None:
    store, outcome = judged
    episode, pack = read_episode(store, outcome.dataset_id, 2), unpack(page, 2)
    assert pack["t"] == list(range(9))
    np.testing.assert_allclose(pack["r"][:8], episode.rewards)
    np.testing.assert_allclose(pack["c"][0], episode.observations[:, 0], atol=1e-3)
    assert pack["return"] == episode.return_
    assert [note["step"] for note in pack["notes"]] == list(range(1, 8))
    assert pack["replies"][pack["notes"][0]["request"]]["file"].startswith("responses/")
    assert pack["rematch"]["return"] == 8.0
    assert [len(side["pictures"]) for side in (pack, pack["rematch"])] == [5, 5]
    assert all(base64.b64decode(data)[8:12] == b"WEBP" for data in pack["pictures"].values())


@pytest.mark.slow
def test_nothing_hostile_is_markup_anywhere_in_the_page(page: str) -> None:
    assert "&lt;script&gt;window.pwned" in page
    assert "⟨U+202E⟩" in unpack(page, 0)["replies"][unpack(page, 0)["notes"][0]["request"]]["text"]
    assert "\u202e" not in page
    assert "window.pwned" not in re.sub(r"&lt;.*?(?=<)", "", text_of(page), flags=re.S)
    assert not re.search(r"<(script|svg|img|a)[^>]*(pwned|example\.invalid)", page)
    scripts = re.findall(r"<script[^>]*>", page)
    assert len(scripts) == 5 + 2 + 12  # the library, ours, the two islands, one for each episode


@pytest.mark.slow
def test_the_policy_of_the_page_allows_its_own_scripts_and_no_network(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    content = policy[1].replace("&#39;", "'")
    for script in re.findall(r'<script type="module">(.*?)</script>', page, re.S):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in content
    assert "default-src 'none'" in content
    assert "connect-src 'none'" in content
    assert "unsafe-eval" not in content
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text_of(page))


@pytest.mark.slow
def test_the_commands_to_reproduce_it_are_those_of_the_command_line(judged: tuple[Store, Outcome], page: str) -> None:
    commands = re.search(r'<pre class="commands"[^>]*>(.*?)</pre>', page, re.S)
    assert commands
    joined = commands[1].replace(" \\\n  ", " ")
    assert joined.startswith(f"STORE=trajnote-store\ntrajnote collect --store &#34;$STORE&#34; --env {SHOWN}")
    assert "--select 10 --accept 20" in joined
    assert "&#39;&lt;b&gt;toy&lt;/b&gt;&#39;" in commands[1]
    assert commands[1].rstrip().endswith(f"trajnote report {judged[1].comparison_id} --store &#34;$STORE&#34;")
    for line in html.unescape(joined).splitlines()[1:]:
        words = shlex.split(line)[1:]
        command: Any = get_command(make_app(words[0]))
        while words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.slow
def test_a_report_is_about_whatever_is_named(judged: tuple[Store, Outcome]) -> None:
    store, outcome = judged
    newest = find_subject(store, None)
    assert (newest.name, newest.comparison_id, newest.refinement_id) == (outcome.comparison_id,) * 2 + (None,)
    (run_id,) = newest.run_ids
    assert find_subject(store, run_id).comparison_id == outcome.comparison_id
    assert find_subject(store, outcome.dataset_id[:12]).run_ids == (run_id,)
    with store.catalog.read() as con:
        found = con.execute("SELECT refinement_id FROM refinements WHERE arm = 'no_labels'").fetchone()
    assert found
    assert find_subject(store, found[0]).refinement_id == found[0]
    with pytest.raises(BadInput, match="no refinement, comparison, run or dataset 'nothing'"):
        find_subject(store, "nothing")


@pytest.mark.slow
def test_a_report_can_go_without_pictures_and_anywhere(judged: tuple[Store, Outcome], tmp_path: Path) -> None:
    plain = write_report(judged[0], judged[1].dataset_id, out=tmp_path / "plain.html", pictures=0)
    assert (plain.path, plain.pictures) == (tmp_path / "plain.html", 0)
    assert unpack(plain.path.read_text(), 0)["pictures"] == {}


@pytest.mark.slow
def test_rollouts_alone_have_a_report(store: Store, tmp_path: Path) -> None:
    dataset_id = gather_toys(store, tmp_path).dataset_id
    plain = write_report(store, pictures=5)
    page = plain.path.read_text()
    assert (plain.path.stem, plain.labels, plain.episodes, plain.pictures) == (dataset_id, 0, 12, 0)
    assert "No policy was refined with them yet" in page
    assert "There are no pictures: the environment renders no pictures" in page
    assert "TypeError" not in text_of(page)
    assert '<body class="unpictured">' in page
    assert 'id="notes"' not in page


def test_an_empty_store_has_nothing_to_report(store: Store) -> None:
    with pytest.raises(Prerequisite, match="The store is empty"):
        write_report(store)


@pytest.mark.slow
def test_filming_stops_where_the_replay_departs_from_the_log(judged: tuple[Store, Outcome]) -> None:
    episode = read_episode(judged[0], judged[1].dataset_id, 0)
    changed = episode.observations.copy()
    changed[5] += 1
    other = Episode(**vars(episode) | {"observations": changed})
    found = film(Take(Home(SHOWN, {}), other, frozenset({0, 3, 7})))
    assert (sorted(found.pictures), found.problem) == ([0, 3], "the replay differs from the log at step 5")


@pytest.mark.slow
def test_an_environment_that_cannot_render_says_so(judged: tuple[Store, Outcome]) -> None:
    episode = read_episode(judged[0], judged[1].dataset_id, 0)
    found = film(Take(Home(TOY, {}), episode, frozenset({0})))
    assert found.pictures == {}
    assert found.problem == "the environment renders no pictures, which needs its render mode rgb_array"


@pytest.mark.slow
def test_what_the_annotator_said_reaches_the_reader_unchanged(page: str) -> None:
    said = unpack(page, 0)["notes"][0]["rationale"]
    assert said.startswith(HOSTILE[:60])


@pytest.mark.slow
def test_actions_are_counted_by_value_under_the_names_of_the_runs_card(store: Store, tmp_path: Path) -> None:
    dataset_id = gather_toys(store, tmp_path).dataset_id
    card = tmp_path / "card.toml"
    card.write_text(CARD)
    answers = write_answers(store, dataset_id, card, tmp_path / "answers.jsonl")
    label(
        store,
        dataset_id,
        LabelConfig(
            provider="recorded", answers=answers, card=str(card), annotate=AnnotateConfig(model="toy", windows=8)
        ),
    )
    assert read_manifest(store, dataset_id).action_names == ("a0", "a1", "a2", "a3")
    page = write_report(store, pictures=0).path.read_text()
    table = re.search(r'<table class="crossing">(.*?)</table>', page, re.S)
    assert table
    assert re.findall(r'<th scope="row">(.*?)</th>', table[1]) == ["east", "north", "west", "south"]
    counts = [
        [int(n.replace("·", "0")) for n in re.findall(r"<td[^>]*>(.*?)</td>", row)]
        for row in table[1].split("<tr>")[2:]
    ]
    steps = read_steps(store, dataset_id)
    acted = ~steps.is_final
    best = right_actions(steps.observation[acted])
    expected = [[int(((steps.action[acted] == a) & (best == b)).sum()) for b in range(4)] for a in range(4)]
    assert [row[:4] for row in counts] == expected
    assert [row[4] for row in counts] == [sum(row) for row in expected]
    pack = unpack(page, 0)
    assert {note["logged"] for note in pack["notes"]} <= {"east", "north", "west", "south"}
    assert [component["name"] for component in island(page, "viewer-data")["components"]] == ["x", "y"]


@pytest.mark.slow
def test_a_reader_of_the_page_alone_learns_who_wrote_the_notes_and_when(page: str) -> None:
    told = " ".join(re.sub(r"<[^>]+>", " ", text_of(page)[text_of(page).index('id="notes"') :]).split())
    assert "12 episodes of report_world:Shown-v0, played by policy:" in told
    assert "A label is a note on one step of one episode" in told
    today = datetime.now(UTC).date()
    days = {str(today), str(today - timedelta(days=1))}
    written = re.search(r"wrote 84 labels on (\S+), in answers that were recorded earlier", told)
    assert written
    assert written[1] in days
    assert "All of them played the same new episodes; judged on " in told


@pytest.mark.slow
def test_settings_are_told_in_words_and_defaults_are_folded_up(page: str) -> None:
    assert "<dt>Snapshots<small>training steps after which a candidate is kept</small></dt>" in page
    assert "settings at their defaults</summary>" in page
    assert "placebo_draws" not in text_of(page)
    assert "null:" not in text_of(page)[text_of(page).index('id="configuration-title"') :]


@pytest.mark.slow
def test_rules_and_labels_from_elsewhere_are_reproduced_by_their_own_imports(store: Store, tmp_path: Path) -> None:
    dataset_id = gather_toys(store, tmp_path).dataset_id
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps([{"predicate": "o0 > 0.1", "suggested_action": 0}]))
    import_rules(store, dataset_id, rules, "somebody")
    import_annotations(store, write_labels(store, dataset_id, tmp_path / "labels.jsonl"))
    page = write_report(store, pictures=0).path.read_text()
    commands = re.search(r'<pre class="commands"[^>]*>(.*?)</pre>', page, re.S)
    assert commands
    joined = commands[1].replace(" \\\n  ", " ")
    assert (
        f"trajnote rules import RULES.json --store &#34;$STORE&#34; --dataset {dataset_id} --model somebody" in joined
    )
    assert "trajnote annotations import LABELS.jsonl --store &#34;$STORE&#34;" in joined
    assert "1 rules by somebody, made elsewhere and imported on " in page
    assert "96 labels by imported, made elsewhere and imported on " in page


def counted(logged: int, suggested: int | None) -> dict[str, Any]:
    return {"action_vector": [float(logged)], "suggested_action": None if suggested is None else [float(suggested)]}


def test_the_table_of_actions_counts_values_that_start_anywhere_and_labels_without_a_suggestion() -> None:
    space = Space(kind="discrete", dtype="int64", size=1, n=2, start=-1)
    found = action_table([counted(-1, 0), counted(-1, 0), counted(0, None)], space, ["down", "up"])
    assert found == {
        "columns": ["down", "up", "no suggestion"],
        "rows": [
            {"logged": "down", "same": 0, "total": 2, "suggested": [0, 2, 0]},
            {"logged": "up", "same": 1, "total": 1, "suggested": [0, 0, 1]},
        ],
    }


def test_of_many_actions_the_table_has_those_that_occur_and_of_too_many_there_is_none() -> None:
    space = Space(kind="discrete", dtype="int64", size=1, n=100)
    names = [f"a{n}" for n in range(100)]
    few = action_table([counted(7, 50)], space, names)
    assert few is not None
    assert few["columns"] == ["a7", "a50"]
    assert action_table([counted(n, n + 1) for n in range(60)], space, names) is None
    assert action_table([], space, names) is None
    assert action_table([counted(0, 0)], Space(kind="box", dtype="float32", size=1), ["push"]) is None
