"""The second verdict: ranks among draws of placebos, how far the labels lead, and the words that say so."""

from __future__ import annotations

import numpy as np
import pytest

from refine.evaluation.gate import (
    HOPELESS,
    Interval,
    Rank,
    deal,
    interval_over_draws,
    judge_labels,
    pair_with_labels,
    rank_labels,
)
from storage.errors import BadInput

AHEAD, BEHIND, UNCLEAR = Interval(9.0, 5.0, 13.0, 100), Interval(-2.0, -6.0, 2.0, 100), Interval(2.0, -1.0, 5.0, 100)
BELOW = list(np.linspace(0, 9, 19))


def test_nineteen_draws_that_are_all_beaten_are_five_percent() -> None:
    rank = rank_labels("shuffled", 10.0, BELOW, asked=19)
    assert (rank.draws, rank.as_good, rank.p, rank.answer) == (19, 0, 0.05, "yes")
    assert rank_labels("shuffled", 10.0, BELOW[:18], asked=18).answer == "not shown"


def test_a_draw_that_is_equal_is_as_good() -> None:
    assert rank_labels("random", 9.0, BELOW, asked=19).as_good == 1
    assert rank_labels("random", 9.0 - 1e-14, BELOW, asked=19).as_good == 1


def test_one_draw_that_is_as_good_asks_for_twice_as_many() -> None:
    rank = rank_labels("random", 8.9, BELOW, asked=19)
    assert (rank.p, rank.answer, rank.wanted) == (0.1, "not shown", 39)
    assert rank_labels("random", 8.9, [*BELOW, *BELOW[:-1], 0.0], asked=39).answer == "not shown"
    assert rank_labels("random", 8.9, [*BELOW, *[0.0] * 20], asked=39).answer == "yes"


def test_counting_ends_with_the_draw_that_makes_it_hopeless() -> None:
    rank = rank_labels("shuffled", 5.0, [6, 1, 7, 2, 8, 9, 9], asked=19)
    assert (rank.draws, rank.as_good, rank.p, rank.answer) == (5, HOPELESS, 0.6, "no")


def test_labels_that_are_one_more_draw_are_credited_in_one_of_twenty_cases() -> None:
    rng = np.random.default_rng(8)
    drawn = rng.normal(0, 1, (4000, 20)) ** 3
    credited = [rank_labels("random", row[0], row[1:].tolist(), asked=19).answer == "yes" for row in drawn]
    assert sum(credited) == pytest.approx(200, abs=45)  # three standard deviations and more


def test_a_rank_asks_for_a_draw() -> None:
    with pytest.raises(BadInput, match="No draw of random was played"):
        rank_labels("random", 1.0, [], asked=19)


def test_the_report_is_dealt_in_runs_of_two_seeds_at_least() -> None:
    parts = deal(100, 19)
    assert [parts[0].start, parts[-1].stop, len(parts)] == [0, 100, 19]
    assert {part.stop - part.start for part in parts} == {5, 6}
    assert deal(10, 19) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8), slice(8, 10)]


def test_the_interval_of_a_placebo_is_over_its_draws_not_over_its_episodes() -> None:
    returns = np.repeat([0.0, 10.0, 20.0, 30.0], 25)
    found = interval_over_draws(returns, 4)
    half = 3.182 * np.std([0, 10, 20, 30], ddof=1) / 2  # Student's t of 3 degrees
    assert (found.mean, found.high) == (15.0, pytest.approx(15 + half, abs=0.01))
    assert pair_with_labels(returns + 7, returns, 4) == Interval(7.0, 7.0, 7.0, 100)
    with pytest.raises(BadInput, match="at least two"):
        interval_over_draws(returns, 1)


def test_labels_ahead_of_every_draw_and_of_the_mean_placebo_are_credited() -> None:
    ranks = [Rank("shuffled", 19, 0, 19), Rank("random", 19, 0, 19)]
    verdict = judge_labels(ranks, {"no_labels": AHEAD, "shuffled": AHEAD, "random": AHEAD})
    assert (verdict.answer, verdict.holds) == ("yes", True)
    assert verdict.reason == (
        "the labels did it: better than 19 of 19 shuffled draws (p = 0.05) and 19 of 19 random draws (p = 0.05); "
        "labels minus the mean placebo: no_labels 9.0 [5.0, 13.0], shuffled 9.0 [5.0, 13.0], random 9.0 [5.0, 13.0]"
    )


def test_a_placebo_that_is_as_good_is_a_no() -> None:
    verdict = judge_labels([Rank("shuffled", 7, 3, 19)], {"shuffled": AHEAD})
    assert verdict.answer == "no"
    assert verdict.reason.startswith("a placebo is as good: 3 of 7 shuffled draws reach the labels (p = 0.43); labels")
    beaten = Rank("shuffled", 19, 0, 19)
    assert judge_labels([beaten], {"shuffled": AHEAD, "no_labels": BEHIND}).answer == "no"


def test_what_is_not_shown_says_what_would_show_it() -> None:
    few = judge_labels([Rank("shuffled", 3, 0, 3)], {"shuffled": AHEAD})
    assert few.answer == "not shown"
    assert "better than 3 of 3 shuffled draws (p = 0.25), but only --draws 19 can show it" in few.reason
    one = judge_labels([Rank("shuffled", 19, 1, 19)], {"shuffled": AHEAD})
    assert "18 of 19 shuffled draws (p = 0.1); --draws 39 shows it if no further one reaches them" in one.reason
    unclear = judge_labels([Rank("shuffled", 19, 0, 19)], {"shuffled": UNCLEAR})
    assert unclear.answer == "not shown"
    assert "the lead over shuffled does not exclude zero; more --report or --draws may show it" in unclear.reason


def test_where_few_draws_differ_each_has_to_be_beaten() -> None:
    assert rank_labels("shuffled", 5.0, [1.0, 2.0], asked=19).answer == "not shown"
    every = rank_labels("shuffled", 5.0, [1.0, 2.0], asked=19, exhausted=True)
    assert (every.answer, str(every)) == ("yes", "2 of 2 shuffled draws, which are all that differ")
    one = judge_labels([rank_labels("permuted", 5.0, [1.0, 6.0], asked=19, exhausted=True)], {"permuted": AHEAD})
    assert one.reason.startswith("a placebo is as good: 1 of 2 permuted draws reach the labels; labels minus")


def test_rejected_labels_earn_no_credit_whatever_their_rank() -> None:
    verdict = judge_labels([Rank("shuffled", 19, 0, 19)], {"shuffled": AHEAD}, accepted=False)
    assert (verdict.answer, verdict.reason) == ("no", "there is nothing to credit: the refinement was rejected")


def test_credit_needs_a_placebo() -> None:
    with pytest.raises(BadInput, match="placebo"):
        judge_labels([], {})
