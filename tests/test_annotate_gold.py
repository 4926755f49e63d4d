"""Labels against a gold set: shares, intervals and tests are the exact ones, and what is not known stays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from scipy import stats

from annotate.quality.gold import GoldScore, GoldSet, Opinion, Rate, Stratum, compare_runs, read_gold, score_run
from storage.errors import BadInput
from storage.schema import Space

PUSH = Space(kind="discrete", dtype="int64", size=1, n=4)
PULL = Space(kind="box", dtype="float32", size=2, low=(-1.0, 0.0), high=(1.0, 10.0))
Action = float | tuple[float, ...]


def say(place: int, action: Action | None, logged: Action = 0.0, **more: object) -> Opinion:
    """An opinion on step `place` of episode 0."""
    suggested = action if isinstance(action, tuple) or action is None else (action,)
    plain: dict[str, object] = {"critical": None, "grade": None, "confidence": None, "run_id": "a_1", "model": "m"}
    return Opinion(
        opinion_id=f"{plain | more} {place}",
        prompt_version="p_1",
        place=(0, place),
        suggested=suggested,
        label=None if suggested is None else f"a{suggested[0]:g}",
        logged=logged if isinstance(logged, tuple) else (logged,),
        **(plain | more),  # type: ignore[arg-type]
    )


def gold_of(actions: Sequence[Action | None], space: Space = PUSH, **more: object) -> GoldSet:
    answers = [say(place, action, run_id="g_1", model="human:ann", **more) for place, action in enumerate(actions)]
    return read_gold(answers, space)


def score(opinions: list[Opinion], gold: GoldSet, space: Space = PUSH) -> GoldScore:
    return score_run(opinions, gold, space)


def test_a_share_has_the_interval_of_clopper_and_pearson() -> None:
    found = Rate.of([True] * 8 + [False] * 2)
    assert found is not None
    assert (found.hits, found.n, found.share) == (8, 10, 0.8)
    assert found.low == pytest.approx(stats.beta.ppf(0.025, 8, 3))
    assert found.high == pytest.approx(stats.beta.ppf(0.975, 9, 2))
    assert Rate.of([]) is None


def test_suggestions_are_right_by_value_and_the_agent_is_judged_on_the_same_states() -> None:
    gold = gold_of([1.0, 1.0, 0.0, 3.0, 2.0])
    found = score([say(0, 1.0), say(1, 2.0), say(2, 0.0), say(3, 3.0), say(9, 1.0)], gold)
    assert found.shared == 4
    assert found.right is not None
    assert (found.right.hits, found.right.n) == (3, 4)
    assert found.agent is not None
    assert (found.agent.hits, found.agent.n) == (1, 4)
    assert found.corrections is not None
    assert (found.corrections.hits, found.corrections.n) == (2, 3)
    assert found.confirmations is not None
    assert (found.confirmations.hits, found.confirmations.n) == (1, 1)
    assert {name: (rate.hits, rate.n) for name, rate in found.by_action.items()} == {
        "a1": (1, 1),
        "a2": (0, 1),
        "a0": (1, 1),
        "a3": (1, 1),
    }
    assert found.gain is not None
    assert (found.gain.both, found.gain.only_first, found.gain.only_second, found.gain.neither) == (1, 2, 0, 1)
    assert found.gain.p == pytest.approx(0.5)  # two of two discordant states, two-sided
    assert found.verdict == "too few to judge"


@pytest.mark.parametrize(("states", "verdict"), [(59, "too few to judge"), (60, "better than what the agent did")])
def test_sixty_compared_suggestions_are_needed_for_a_verdict(states: int, verdict: str) -> None:
    gold = gold_of([1.0] * states)
    assert score([say(place, 1.0) for place in range(states)], gold).verdict == verdict


def test_suggestions_that_are_worse_than_the_agent_and_such_that_are_like_it_are_called_so() -> None:
    gold = gold_of([0.0] * 80)
    worse = [say(place, 1.0) for place in range(80)]
    alike = [say(place, float(place < 3)) for place in range(80)]
    assert score(worse, gold).verdict == "worse than what the agent did"
    assert score(alike, gold).verdict == "not shown to be better than what the agent did"


def test_an_answer_without_an_action_is_a_verdict_on_what_was_done() -> None:
    fine = say(0, None, 2.0, grade=1.0, run_id="g_1")
    bad = say(1, None, 2.0, grade=-0.5, run_id="g_1")
    silent = say(2, None, 2.0, grade=0.0, run_id="g_1")
    gold = read_gold([fine, bad, silent], PUSH)
    found = score([say(0, 2.0, 2.0), say(1, 2.0, 2.0), say(2, 2.0, 2.0)], gold)
    assert found.right is not None
    assert (found.right.hits, found.right.n) == (1, 2)  # right where nothing is better, wrong where it confirms the bad
    other = score([say(0, 1.0, 2.0), say(1, 1.0, 2.0)], gold)
    assert other.right is not None
    assert (other.right.hits, other.right.n) == (0, 1)  # nobody says that 1 would have been right in the bad state


def test_a_verdict_on_a_single_suggestion_counts_before_the_action() -> None:
    accepted = say(0, 1.0)
    gold = read_gold([say(0, 3.0, run_id="g_1")], PUSH, refused={accepted.opinion_id: True})
    found = score([accepted], gold)
    assert found.right is not None
    assert found.right.hits == 1


def test_readers_who_differ_leave_no_verdict_and_their_agreement_is_said() -> None:
    answers = [say(place, 1.0, run_id="g_1") for place in range(4)]
    answers += [say(place, float(place != 0), run_id="g_2") for place in range(3)]
    gold = read_gold(answers, PUSH)
    assert (gold.contested, gold.answered) == (1, 4)
    assert gold.between is not None
    assert (gold.between.hits, gold.between.n) == (2, 3)
    found = score([say(place, 1.0) for place in range(4)], gold)
    assert found.right is not None
    assert (found.shared, found.right.hits, found.right.n) == (4, 3, 3)


def test_actions_that_are_not_finite_are_left_out_and_counted() -> None:
    gold = read_gold([say(0, (float("nan"), 1.0), (0.0, 0.0)), say(1, (0.0, 1.0), (0.0, 0.0))], PULL)
    assert (gold.unusable, gold.answered) == (1, 1)
    found = score([say(1, (float("nan"), 0.0), (0.0, 0.0))], gold, PULL)
    assert (found.right, found.verdict) == (None, "too few to judge")
    with pytest.raises(BadInput, match="has no answers"):
        read_gold([], PULL)


def test_continuous_actions_are_right_within_five_percent_of_each_range_and_nearer_or_not() -> None:
    gold = gold_of([(0.5, 5.0), (0.5, 5.0), (0.5, 5.0)], PULL, logged=(0.0, 0.0))
    found = score(
        [say(0, (0.59, 5.4), (0.0, 0.0)), say(1, (0.5, 8.0), (0.0, 0.0)), say(2, (-1.0, 9.9), (0.0, 0.0))], gold, PULL
    )
    assert found.right is not None
    assert found.nearer is not None
    assert (found.right.hits, found.right.n) == (1, 3)
    assert (found.nearer.hits, found.nearer.n) == (2, 3)  # 0.15 and 0.62 of a range away, what was done 0.375


def test_samples_of_one_state_count_once_by_most_of_them() -> None:
    gold = gold_of([1.0, 1.0])
    samples = [say(0, 1.0), say(0, 1.0), say(0, 2.0), say(1, 1.0), say(1, 2.0)]
    found = score(samples, gold)
    assert found.right is not None
    assert (found.right.hits, found.right.n) == (1, 2)  # a tie is no majority


def test_confidence_and_grades_are_compared_with_what_is_right() -> None:
    gold = gold_of([1.0] * 20)
    opinions = [say(n, 1.0, confidence=0.95, grade=-0.5) for n in range(9)]
    opinions += [say(9, 2.0, confidence=0.95, grade=-0.5)]
    opinions += [say(n, 2.0, 1.0, confidence=0.55, grade=0.5) for n in range(10, 20)]
    gold = read_gold([say(n, 1.0, 0.0 if n < 10 else 1.0, run_id="g_1") for n in range(20)], PUSH)
    found = score(opinions, gold)
    assert [(bin_.low, bin_.right.hits, bin_.right.n) for bin_ in found.bins] == [(0.5, 0, 10), (0.9, 9, 10)]
    assert found.calibration_error == pytest.approx(0.5 * 0.55 + 0.5 * 0.05)
    assert found.confidence_order is not None
    assert found.confidence_order.share == pytest.approx((9 * 10 + 9 * 0.5) / (9 * 11))
    assert found.grade_order is not None
    assert (found.grade_order.share, found.grade_order.n) == (1.0, 20)


def test_critical_has_precision_recall_and_the_recall_over_all_steps_of_a_random_set() -> None:
    critical = [True, True, False, True, False, True, False, False]
    answers = [replace(say(place, 1.0, run_id="g_1"), critical=flag) for place, flag in enumerate(critical)]
    labelled, others = frozenset((0, place) for place in range(4)), frozenset((0, place) for place in range(4, 8))
    gold = read_gold(answers, PUSH, strata=[Stratum(labelled, 8), Stratum(others, 92)])
    said = [True, False, True, True]
    found = score([replace(say(place, 1.0), critical=flag) for place, flag in enumerate(said)], gold)
    assert found.critical_right is not None
    assert found.critical_found is not None
    assert found.critical_base is not None
    assert (found.critical_right.hits, found.critical_right.n) == (2, 3)
    assert (found.critical_found.hits, found.critical_found.n) == (2, 3)
    assert (found.critical_base.hits, found.critical_base.n) == (3, 4)
    anywhere = found.critical_found_anywhere
    assert anywhere is not None
    assert anywhere.share == pytest.approx((8 / 4 * 2) / (8 / 4 * 3 + 92 / 4 * 1))
    assert anywhere.low <= anywhere.share <= anywhere.high
    assert anywhere.n == 8


def test_a_gold_set_that_calls_all_states_critical_says_nothing_of_them() -> None:
    gold = gold_of([1.0, 1.0], critical=True)
    found = score([say(0, 1.0, critical=True), say(1, 1.0, critical=False)], gold)
    assert (found.critical_right, found.critical_found, found.critical_base) == (None, None, None)


def test_two_runs_are_compared_on_their_common_states_by_an_exact_mcnemar_test() -> None:
    gold = gold_of([1.0] * 100)
    first = [say(place, float(place < 80)) for place in range(90)]
    second = [say(place, float(place >= 70 or place < 10), run_id="a_2") for place in range(20, 100)]
    found = compare_runs(first, second, gold, PUSH)
    assert found is not None
    paired = found.paired
    assert (paired.states, paired.both, paired.only_first, paired.only_second, paired.neither) == (70, 10, 50, 10, 0)
    assert paired.p == pytest.approx(stats.binomtest(10, 60).pvalue)
    assert found.answer == "the first is right more often"
    assert compare_runs(first[:5], second, gold, PUSH) is None


def test_the_interval_of_an_order_is_newcombes_and_holds_where_nothing_is_out_of_order() -> None:
    gold = gold_of([1.0] * 12)
    opinions = [say(n, float(n < 8), confidence=0.9 if n < 8 else 0.1) for n in range(12)]
    found = score(opinions, gold).confidence_order
    assert found is not None
    assert (found.share, found.high, found.n, found.positive) == (1.0, 1.0, 12, 8)
    theta, pairs, extra = found.low, 8 * 4, (8 + 4) / 2 - 1
    spread = theta * (1 - theta) * (1 + extra * (1 - theta) / (2 - theta) + extra * theta / (1 + theta)) / pairs
    assert (1 - theta) ** 2 == pytest.approx(1.959964**2 * spread, rel=1e-4)
    assert 0.4 < theta < 0.9


def test_the_recall_over_all_steps_is_uncertain_even_where_all_that_was_drawn_is_found() -> None:
    places = frozenset((0, place) for place in range(30))
    answers = [replace(say(place, 1.0, run_id="g_1"), critical=place < 2) for place in range(30)]
    gold = read_gold(answers, PUSH, strata=[Stratum(places, 3000)])
    found = score([replace(say(place, 1.0), critical=place < 2) for place in range(30)], gold).critical_found_anywhere
    assert found is not None
    assert (found.share, found.high, found.n, found.positive) == (1.0, 1.0, 30, 2)
    assert 0.1 < found.low < 0.7
