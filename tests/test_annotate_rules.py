"""Rules are asked for and read like labels: paid for once, checked throughout, refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedProvider, read_rules
from soak import full_or
from store_state import ask, raw_reply
from toy_cards import CARD
from toy_datasets import make_draft, make_episode, write

from annotate.cards.cards import Action, Card, Component, load_card
from annotate.importing.rules import import_rules
from annotate.ledger.ledger import add_questions, enter_landed, land_reply, open_run
from annotate.ledger.readings import digest
from annotate.parsing.replies import ParsedReply
from annotate.prompting.rendering import prompt_version
from annotate.prompting.requests import AnnotateConfig, Request, reply_schema
from annotate.prompting.selection import spread_by_return
from annotate.providers.answers import FileProvider, export_requests, text_message
from annotate.runs.plan import RunPlan, estimate_run, plan_run
from annotate.runs.run import annotate_run
from storage.annotations.rules import Rule, load_rule_lists
from storage.errors import BadInput
from storage.formulas import Term
from storage.schema import Space
from storage.store import Store

FREE = CARD.model_copy(
    update={
        "actions": (Action(name="hip", meaning="h", low=-1, high=1), Action(name="knee", meaning="k", low=-2, high=2))
    }
)
CONFIG = AnnotateConfig(model="toy-model", kind="rules", rules=5, tables=3, rows=12)


def entry(predicate: Any = "x < 0", **changes: Any) -> dict[str, Any]:
    return {"rationale": "so", "predicate": predicate, "suggested_action": "right", "confidence": 0.75} | changes


def reply(*entries: Any) -> str:
    return text_message(json.dumps({"assessment": "fine", "rules": entries}))


ENTRIES = (entry("X<0.0"), entry("y > 1e400"), entry("step > 2", suggested_action="left"), entry("x < 0 "))


def answer(request: Request) -> str:
    return reply(*ENTRIES)


@pytest.fixture
def toys(toy_store: Callable[[Sequence[int]], Store]) -> Store:
    return toy_store((4, 5, 6, 7, 8))


def plan(store: Store, card: Card = CARD, **changes: Any) -> RunPlan:
    return plan_run(store, "d1", card, CONFIG.model_copy(update=changes))


def load_rules(store: Store, dataset_id: str, run_ids: Sequence[str] | None = None) -> list[Rule]:
    return [each for listed in load_rule_lists(store, dataset_id, run_ids) for each in listed.rules]


def test_the_words_about_single_steps_have_kept_their_version() -> None:
    assert prompt_version() == prompt_version("suggest") == "p_d4373a3ec8d8"
    assert prompt_version("rules") == "p_874fee98e73f"
    versions = {prompt_version(), prompt_version("rules"), prompt_version("study")}
    assert len(versions | {prompt_version("mark", "playbook"), prompt_version("rules", "feedback")}) == 5


@pytest.mark.slow
def test_one_request_shows_episodes_from_the_lowest_return_to_the_highest(toys: Store) -> None:
    made = plan(toys)
    (request,) = made.requests
    assert request.kind == "rules"
    text = request.params["messages"][0]["content"]
    shown = [int(line.split()[-1]) for line in text.splitlines() if line.startswith("# Episode")]
    episodes = {i: make_episode(i, 4 + i).return_ for i in range(5)}
    ranked = sorted(episodes, key=lambda i: episodes[i])
    assert shown == list(made.episodes) == [ranked[0], ranked[2], ranked[4]]
    assert "at most 5 rules" in request.params["system"]
    assert "these columns: x, y, z, step (" in request.params["system"]
    assert "window 1" not in text
    assert len({question.request.request_id for question in plan(toys, samples=3).questions}) == 3
    assert made.run.prompt_version == prompt_version("rules")
    assert made.run.run_id != plan(toys, rules=6).run.run_id
    assert estimate_run(toys, made).tokens.output == 150 + 5 * 110


def test_episodes_are_spread_over_the_ranking() -> None:
    episodes = [make_episode(i, 4) for i in range(6)]
    ranked = sorted(episodes, key=lambda episode: episode.return_)
    for count, places in {1: [2], 2: [0, 5], 3: [0, 2, 5], 6: [0, 1, 2, 3, 4, 5], 9: [0, 1, 2, 3, 4, 5]}.items():
        assert [e.episode_id for e in spread_by_return(episodes, count)] == [ranked[p].episode_id for p in places]


@pytest.mark.slow
def test_a_reply_becomes_rules_and_rejections_and_leads_back(toys: Store) -> None:
    summary = annotate_run(toys, plan(toys), ScriptedProvider(answer))
    assert (summary.done, summary.totals.rules, summary.totals.labels, summary.totals.rejections) == (True, 2, 0, 2)
    first, second = load_rules(toys, "d1", [summary.run_id])
    assert (first.predicate, first.position, first.suggested_action, first.suggested_label) == (
        "x < 0",
        0,
        (1.0,),
        "right",
    )
    assert (second.predicate, second.position, second.confidence) == ("step > 2", 2, 0.75)
    assert (first.model, first.prompt_version) == ("scripted", prompt_version("rules"))
    reasons = ask(toys, "SELECT reason, detail, episode_id, step FROM rejections ORDER BY reason")
    assert reasons == [
        ("duplicate_rule", "the condition x < 0 has a rule already", None, None),
        ("illegal_predicate", "a number of this size is not allowed: `1e400`", None, None),
    ]
    assert first.request_id is not None
    assert "X<0.0" in json.loads(raw_reply(toys, first.request_id)["raw"])["content"][0]["text"]


@pytest.mark.slow
def test_equal_questions_are_asked_once_and_a_second_command_changes_nothing(toys: Store) -> None:
    asked: list[str] = []

    def count(request: Request) -> str:
        asked.append(request.request_id)
        return answer(request)

    first = annotate_run(toys, plan(toys), ScriptedProvider(count))
    before = ask(toys, "SELECT * FROM rules ORDER BY rule_id")
    second = annotate_run(toys, plan(toys), ScriptedProvider(count))
    assert (len(asked), second.was_done, second.run_id) == (1, True, first.run_id)
    assert ask(toys, "SELECT * FROM rules ORDER BY rule_id") == before


@pytest.mark.slow
@pytest.mark.parametrize("entered", [False, True])
def test_a_run_killed_between_the_reply_and_its_rules_is_finished_by_the_next_command(
    toys: Store, entered: bool
) -> None:
    made = plan(toys)
    with toys.catalog.write() as con:
        open_run(con, made.run, made.card, "scripted", recorded=False)
        add_questions(con, made.run, made.questions)
    provider = ScriptedProvider(answer)
    (landed,) = [land_reply(toys, made.run.run_id, provider, r) for r in provider.answer(made.requests)]
    if entered:
        with toys.catalog.write() as con:
            enter_landed(con, [landed])
        assert digest(toys) == 1
        assert len(load_rules(toys, "d1")) == 2
    summary = annotate_run(toys, made, ScriptedProvider(lambda request: pytest.fail("asked twice")))
    assert summary.totals.rules == 2
    assert ask(toys, "SELECT count(*) FROM responses") == [(1,)]
    assert ask(toys, "SELECT count(*) FROM ruled_steps WHERE run_id IS NOT NULL")[0][0] > 5


@pytest.mark.slow
def test_exported_questions_are_answered_from_a_file(toys: Store, tmp_path: Path) -> None:
    made = plan(toys)
    assert export_requests(tmp_path / "requests.jsonl", made.requests) == 1
    request_id = json.loads((tmp_path / "requests.jsonl").read_text())["custom_id"]
    line = {"request_id": request_id, "reply": {"assessment": "", "rules": [entry()]}}
    (tmp_path / "answers.jsonl").write_text(json.dumps(line))
    assert annotate_run(toys, made, FileProvider(tmp_path / "answers.jsonl")).totals.rules == 1


def test_names_that_differ_from_the_dataset_are_refused(toys: Store) -> None:
    renamed = CARD.model_copy(update={"components": tuple(Component(name=n, meaning="m") for n in ("a", "b", "c"))})
    with pytest.raises(BadInput, match="calls the columns a, b, c; the dataset d1 has x, y, z"):
        plan(toys, renamed)
    with pytest.raises(ValueError, match="one stage"):
        AnnotateConfig(kind="rules", two_stage=True)


def test_options_for_rules_change_no_run_about_labels() -> None:
    plain = AnnotateConfig().identity_fields
    assert AnnotateConfig(rules=3, tables=9).identity_fields == plain
    assert not {"kind", "rules", "tables"} & plain.keys()


def test_a_continuous_rule_may_leave_dimensions_open() -> None:
    schema = reply_schema("rules", FREE)["properties"]["rules"]["items"]["properties"]
    assert list(schema) == ["rationale", "predicate", "suggested_action", "critical", "confidence"]
    kinds = [{"type": "number"}, {"type": "string"}, {"type": "null"}]
    assert schema["suggested_action"]["properties"]["hip"] == {"anyOf": kinds}
    actions = [{"hip": 0.5, "knee": None}, {"knee": -2}, {"hip": None, "knee": None}, {"toe": 1}, {"hip": 3}, [1, 2]]
    found = read_rules(reply(*(entry(f"x < {n}", suggested_action=action) for n, action in enumerate(actions))), FREE)
    assert [(rule.action, rule.action_label) for rule in found.rules] == [
        ((0.5, None), "hip=0.50"),
        ((None, -2.0), "knee=-2.00"),
    ]
    assert [refused.reason for refused in found.refused] == ["illegal_action"] * 4


LAW: dict[str, Any] = {
    "assessment": "fine",
    "terms": [
        {"name": "lean", "expression": "X+2*y", "meaning": "how far"},
        {"name": "is_late", "expression": "step > 3", "meaning": "so"},
        {"name": "half", "expression": "0.5", "meaning": "a number"},
    ],
    "rules": [
        entry("is_late AND lean > 0", suggested_action={"hip": "-lean", "knee": 1}, critical=True),
        entry("lean <= 0", suggested_action={"hip": "half * 1", "knee": "previous.x / lean"}, critical=False),
    ],
    "potential": "-abs( lean )",
}


def read_law(**changes: Any) -> ParsedReply:
    return read_rules(text_message(json.dumps(LAW | changes)), FREE)


def test_a_reply_gives_terms_formulas_critical_states_and_a_potential() -> None:
    found = read_law()
    assert found.refused == ()
    assert found.terms == (
        Term("lean", "x + 2 * y", "how far"),
        Term("is_late", "step > 3", "so"),
        Term("half", "0.5", "a number"),
    )
    assert found.potential == "-abs(lean)"
    first, second = found.rules
    assert (first.action, first.formulas, first.critical) == ((None, 1.0), ("-lean", None), True)
    assert first.action_label == "hip=-lean knee=1.00"
    assert (second.action, second.formulas, second.critical) == ((0.5, None), (None, "previous.x / lean"), False)


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"terms": [{"name": "a", "expression": "b + x", "meaning": ""}]}, "illegal_term", "there is no column `b`"),
        ({"terms": [{"name": "x", "expression": "y", "meaning": ""}]}, "illegal_term", "Two things are called 'x'"),
        ({"terms": 5}, "wrong_type", "terms is not a list"),
        ({"terms": [5]}, "wrong_type", "a int in place of an object"),
        ({"potential": "1 + 1"}, "illegal_potential", "the same in every state"),
        ({"potential": "read_csv(x)"}, "illegal_potential", "the function `read_csv` is not allowed"),
        ({"potential": 7}, "wrong_type", "an expression or null is allowed"),
        ({"rules": [entry(suggested_action={"hip": "z +"})]}, "illegal_formula", "hip: `z +` is no expression"),
        ({"rules": [entry(suggested_action={"hip": "w"})]}, "illegal_formula", "hip: there is no column `w`"),
        ({"rules": [entry(suggested_action={"hip": "1 / 0"})]}, "illegal_formula", "has no value in any state"),
        ({"rules": [entry(suggested_action={"hip": "1 + 1"})]}, "illegal_action", "-1.0 to 1.0 is allowed"),
        ({"rules": [entry(suggested_action={"hip": 0}, critical="yes")]}, "wrong_type", "true or false is allowed"),
    ],
)
def test_what_breaks_a_rule_of_the_language_is_refused_in_one_line(
    changes: dict[str, Any], reason: str, detail: str
) -> None:
    plain = {"terms": [], "rules": [entry(suggested_action={"hip": 0})], "potential": None}
    (refused,) = read_law(**plain | changes).refused
    assert refused.reason == reason
    assert detail in refused.detail
    assert "\n" not in refused.detail


BROKEN = {
    "no list": (text_message('{"rules": 5}'), "wrong_type"),
    "no text": (text_message(""), "no_text"),
    "not JSON": ("{", "not_a_message"),
    "an entry that is no object": (reply(5), "wrong_type"),
    "a condition that is no text": (reply(entry(7)), "wrong_type"),
    "a condition that is missing": (reply({k: v for k, v in entry().items() if k != "predicate"}), "missing_field"),
    "an unknown action": (reply(entry(suggested_action="up")), "illegal_action"),
    "an action of steps": (reply(entry(suggested_action=1)), "illegal_action"),
    "too sure": (reply(entry(confidence=1.5)), "out_of_range"),
    "no number": (reply(entry(confidence="high")), "wrong_type"),
    "a query": (reply(entry("x IN (SELECT y FROM steps)")), "illegal_predicate"),
    "a file": (reply(entry("read_text('/etc/passwd') > x")), "illegal_predicate"),
    "too many": (reply(*(entry(f"x < {n}") for n in range(150))), "too_many"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_reply_that_breaks_a_rule_is_kept_with_its_reason(name: str) -> None:
    raw, reason = BROKEN[name]
    found = read_rules(raw, CARD)
    assert [refused.reason for refused in found.refused] == [reason]
    assert len(found.rules) == (100 if name == "too many" else 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=full_or(150, 37), deadline=None)
@given(
    entries=st.lists(
        JSON | JSON.map(lambda value: entry(value)) | JSON.map(lambda value: entry(suggested_action=value)), max_size=4
    ),
    text=st.text(max_size=30),
)
def test_no_reply_crashes_and_every_rule_that_counts_is_lawful(entries: list[Any], text: str) -> None:
    for raw in (text, text_message(text), reply(*entries)):
        for rule in read_rules(raw, CARD).rules:
            assert rule.action in ((0.0,), (1.0,))
            assert 0 <= rule.confidence <= 1


FILES = {
    "rules.json": json.dumps([entry("x < 0", suggested_action=1), {"predicate": "y>0", "suggested_action": "left"}]),
    "wrapped.json": json.dumps({"rules": [entry("x < 0"), {"predicate": "y > 0", "suggested_action": [0]}]}),
    "rules.toml": '[[rules]]\npredicate = "x < 0"\nsuggested_action = "right"\nconfidence = 0.75\nrationale = "so"\n'
    '[[rules]]\npredicate = "y > 0"\nsuggested_action = 0\n',
    "rules.csv": "predicate,suggested_action,confidence,rationale\nx < 0,right,0.75,so\ny > 0,0,,\n",
}


@pytest.mark.parametrize("name", FILES)
def test_rules_come_from_files_of_three_kinds(toys: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name])
    first = import_rules(toys, "d1", tmp_path / name, "a person")
    assert (first.rules, first.entered) == (2, 2)
    assert import_rules(toys, "d1", tmp_path / name, "a person").entered == 0
    found = load_rules(toys, "d1", [first.run_id])
    told = [(r.predicate, r.suggested_action, r.suggested_label, r.confidence, r.rationale, r.model) for r in found]
    assert told == [
        ("x < 0", (1.0,), "right", 0.75, "so", "a person"),
        ("y > 0", (0.0,), "left", None, None, "a person"),
    ]
    assert [rule.position for rule in found] == [0, 1]


def test_one_bad_rule_keeps_all_of_them_out(toys: Store, tmp_path: Path) -> None:
    bad = [entry(), entry("x ; 1"), entry("y < 1", suggested_action="up"), entry("x<0"), 5, entry("y < 2", colour=1)]
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    with pytest.raises(BadInput) as refused:
        import_rules(toys, "d1", tmp_path / "bad.json")
    said = str(refused.value)
    assert "5 of 6 rules cannot be used: rule 2: the expression has a second statement (;)" in said
    for part in (
        "rule 3: suggested_action 'up' is not one of",
        "rule 4: `x < 0` has a rule",
        "rule 5: ",
        "rule 6: colour",
    ):
        assert part in said
    assert ask(toys, "SELECT count(*) FROM rules") == ask(toys, "SELECT count(*) FROM annotation_runs") == [(0,)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.json", "[]", "no rules"),
        ("broken.json", "{", "cannot be read as JSON"),
        ("broken.toml", "= 1", "cannot be read as TOML"),
        ("plain.txt", "x < 0", "does not end in .json, .toml or .csv"),
        ("deep.json", "[" * 100_000, "cannot be read as JSON"),
        ("long.json", "[" + " " * 1_000_001 + "]", "more than 1,000,000 bytes"),
        ("missing.json", None, "cannot be read"),
        ("bytes.csv", b"\xff\xfe", "is not a text: it is UTF-16"),
        (
            "many.json",
            json.dumps([entry(f"x < {number}") for number in range(1_001)]),
            "1,001 rules; 1,000 are allowed",
        ),
        ("dots.toml", "a." * 100_000 + "a = 1", "cannot be read as TOML: it is nested more than 64 levels"),
        ("digits.json", '[{"predicate": 1' + "0" * 5_000 + "}]", "a number has more than 40 digits"),
    ],
)
def test_a_file_that_holds_no_rules_is_refused(
    toys: Store, tmp_path: Path, name: str, content: str | bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadInput, match=said):
        import_rules(toys, "d1", tmp_path / name)


BAD_LAWS = {
    "a formula that divides by zero everywhere": (
        {"rules": [entry("x < 9", suggested_action=["x / 0", None]), entry("y < 9", suggested_action=[0, 0])]},
        "The formula of the rule `x < 9` has no value in any step where it decides",
    ),
    "a name that is no component": (
        {"rules": [entry("x < 9", suggested_action={"hip": "speed"})]},
        "1 of 1 rules cannot be used: rule 1: there is no column `speed`",
    ),
    "a cycle of terms": (
        {
            "terms": [{"name": "a", "expression": "b"}, {"name": "b", "expression": "a"}],
            "rules": [entry("x < 9", suggested_action=[0, 0])],
        },
        "2 parts cannot be used: term 1: The term a: there is no column `b`; term 2: The term b: there is no",
    ),
    "a list that decides nowhere": (
        {"rules": [entry("x < -99", suggested_action=[0, 0])]},
        "The rules decide in none of the dataset's steps",
    ),
    "a potential that is constant": (
        {"rules": [entry("x < 9", suggested_action=[0, 0])], "potential": "2 * 3"},
        "potential: `2 * 3` is the same in every state",
    ),
    "a potential that is constant in the data": (
        {"rules": [entry("x < 9", suggested_action=[0, 0])], "potential": "0 * x"},
        "The potential `0 * x` is the same in all of the dataset's steps",
    ),
    "an unknown part": ({"rules": [entry()], "laws": []}, "it has laws; known: rules, terms, assessment, potential"),
}


def torque_store(folder: Path) -> Store:
    store = Store.create(folder / "store")
    space = Space(kind="box", dtype="float64", size=2, low=(-1.0, -2.0), high=(1.0, 2.0))
    episode = make_episode(0, 4, actions=np.zeros((4, 2)))
    write(store, make_draft("d1", action_space=space, action_names=("hip", "knee")), [episode])
    return store


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_LAWS)
def test_a_bad_law_is_refused_in_one_line_and_nothing_is_entered(tmp_path: Path, name: str) -> None:
    content, problem = BAD_LAWS[name]
    store = torque_store(tmp_path)
    (tmp_path / "law.json").write_text(json.dumps(content))
    with pytest.raises(BadInput) as refused:
        import_rules(store, "d1", tmp_path / "law.json")
    assert problem in refused.value.problem
    assert "\n" not in str(refused.value)
    for table in ("rules", "terms", "rule_lists", "annotation_runs"):
        assert ask(store, f"SELECT count(*) FROM {table}") == [(0,)]


IDLE_PARTS: dict[str, tuple[dict[str, Any], list[tuple[str, str]], tuple[int, int, str | None]]] = {
    "a formula that divides by zero everywhere": (
        {"rules": [entry("x < 9", suggested_action={"hip": "x / 0"}), entry("y < 9", suggested_action={"hip": 0})]},
        [("no_value", "its formula has no value in any step where it decides")],
        (1, 0, "-abs(x)"),
    ),
    "formulas of which none has a value": (
        {"rules": [entry(f"x < {n}", suggested_action={"hip": "ln(-exp(x))"}) for n in (99, 999)]},
        [("no_value", "its formula has no value in any step where it decides")] * 2,
        (0, 0, None),
    ),
    "a list that decides nowhere": (
        {"rules": [entry("x < -99", suggested_action={"hip": 0})], "terms": LAW["terms"]},
        [("decides_nowhere", "the rules decide in none of the dataset's steps")],
        (0, 0, None),
    ),
    "a potential that is constant in the data": (
        {"rules": [entry("x < 9", suggested_action={"hip": 0})], "potential": "0 * x"},
        [("illegal_potential", "the potential is the same in all of the dataset's steps")],
        (1, 0, None),
    ),
    "a potential without a value": (
        {"rules": [entry("x < 9", suggested_action={"hip": 0})], "potential": "x / 0"},
        [("illegal_potential", "the potential is the same in all of the dataset's steps")],
        (1, 0, None),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IDLE_PARTS)
def test_what_a_reply_says_of_no_step_is_rejected_in_one_line(tmp_path: Path, name: str) -> None:
    changes, rejected, (rules, terms, potential) = IDLE_PARTS[name]
    store = torque_store(tmp_path)
    law = json.dumps({"assessment": "", "terms": [], "potential": "-abs(x)"} | changes)
    made = plan_run(store, "d1", FREE, CONFIG)
    summary = annotate_run(store, made, ScriptedProvider(lambda request: text_message(law)))
    assert summary.done
    assert ask(store, "SELECT reason, detail FROM rejections") == rejected
    assert ask(store, "SELECT count(*) FROM rules") == [(rules,)]
    assert ask(store, "SELECT count(*) FROM terms") == [(terms,)]
    assert ask(store, "SELECT potential FROM rule_lists") == ([(potential,)] if rules else [])


@pytest.mark.slow
def test_a_law_is_imported_as_a_reply_gives_it(tmp_path: Path) -> None:
    store = torque_store(tmp_path)
    (tmp_path / "law.json").write_text(json.dumps(LAW))
    done = import_rules(store, "d1", tmp_path / "law.json", "a person")
    assert import_rules(store, "d1", tmp_path / "law.json", "a person").entered == 0
    (found,) = load_rule_lists(store, "d1")
    assert (found.list_id, found.potential, found.assessment) == (done.run_id, "-abs(lean)", "fine")
    assert [term.name for term in found.terms] == ["lean", "is_late", "half"]
    assert [rule.formulas for rule in found.rules] == [("-lean", None), ("half * 1", "previous.x / lean")]
    assert [rule.critical for rule in found.rules] == [True, False]


@pytest.mark.slow
def test_imported_rules_of_continuous_actions_may_leave_dimensions_open(tmp_path: Path) -> None:
    store = torque_store(tmp_path)
    good = [entry("x < 0", suggested_action={"knee": 1.5}), entry("x < 1", suggested_action=[0.5, None])]
    (tmp_path / "good.json").write_text(json.dumps([*good, entry("x < 2", suggested_action=[0.5, 2.0])]))
    import_rules(store, "d1", tmp_path / "good.json")
    assert [rule.suggested_action for rule in load_rules(store, "d1")] == [(None, 1.5), (0.5, None), (0.5, 2.0)]
    for action in ({"toe": 1}, [3, None], [None, None], [0.5], "up"):
        (tmp_path / "bad.json").write_text(json.dumps([entry("y < 0", suggested_action=action)]))
        with pytest.raises(BadInput, match="suggested_action"):
            import_rules(store, "d1", tmp_path / "bad.json")


ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/rules.jsonl"))


def test_every_example_has_a_list_of_rules() -> None:
    assert len(EXAMPLES) == len(list(ROOT.glob("examples/*/rollouts"))) == 17


def card_of_example(example: Path) -> Card:
    manifest = json.loads((example / "rollouts" / "manifest.json").read_text())
    own = manifest["env_id"].rpartition("/")[2].partition("-")[0].lower()
    card = ROOT / "benchmarks" / "cards" / f"{own}.toml"
    return load_card(card if card.exists() else manifest["env_id"], manifest["env_kwargs"])


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_shipped_rules_are_the_answer_to_the_shipped_question(name: str) -> None:
    example = ROOT / "examples" / name
    line = json.loads((example / "rules.jsonl").read_text())
    found = read_rules(text_message(line["text"]), card_of_example(example))
    assert found.refused == ()
    assert len(found.rules) >= 4
    assert line["prompt_version"] == prompt_version("rules")
    assert (line["recorded"], line["model"]) == (True, "claude")


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/rules-*.json")), ids=lambda path: path.parent.name)
def test_later_versions_of_the_shipped_rules_have_nothing_that_is_refused(path: Path) -> None:
    found = read_rules(text_message(path.read_text()), card_of_example(path.parent))
    assert found.refused == ()
    assert found.rules
    assert found.potential
