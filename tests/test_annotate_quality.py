"""Label health: labels by a rule are found fit, random, empty and one-sided ones are not, and the numbers are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_datasets import BOX3, PUSH

from annotate.quality import placement
from annotate.quality.models import discounted_returns, measure_consistency, measure_salience
from annotate.quality.placement import (
    AnnotationColumns,
    clustered_error,
    measure_agreement,
    measure_calibration,
    measure_coverage,
    place_annotations,
    same_actions,
    state_rows,
)
from annotate.quality.verdict import Quality, assess_run, judge
from storage.annotations.annotations import LabelReplay
from storage.datasets.reader import StepArrays
from storage.schema import Annotation, Space

EPISODES, LENGTH = 12, 30
BOX2 = Space(kind="box", dtype="float32", size=2, low=(-1.0, -1.0), high=(1.0, 1.0))
Say = Callable[[int, np.ndarray, np.random.Generator], tuple[float, ...] | None]


def make_steps(space: Space = PUSH) -> StepArrays:
    """Twelve episodes of thirty steps; the agent acts at random, and the reward is the first component."""
    rng = np.random.default_rng(0)
    rows = EPISODES * (LENGTH + 1)
    final = np.arange(rows) % (LENGTH + 1) == LENGTH
    states = rng.normal(size=(rows, BOX3.size)).astype(np.float32)
    actions = rng.integers(0, 2, rows) if space.is_discrete else rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    return StepArrays(
        episode_id=np.repeat(np.arange(EPISODES), LENGTH + 1),
        step=np.tile(np.arange(LENGTH + 1), EPISODES).astype(np.int32),
        observation=states,
        action=actions * (~final if space.is_discrete else ~final[:, None]),
        reward=states[:, 0].astype(np.float64) * ~final,
        terminated=np.append(final[1:], False),
        truncated=np.zeros(rows, np.bool_),
        is_final=final,
        policy_output=None,
    )


def by_rule(row: int, state: np.ndarray, rng: np.random.Generator) -> tuple[float, ...]:
    return (float(state[1] > 0),)


def at_random(row: int, state: np.ndarray, rng: np.random.Generator) -> tuple[float, ...]:
    return (float(rng.integers(2)),)


def annotate(steps: StepArrays, say: Say, places: range = range(1, LENGTH, 4), **changes: Any) -> list[Annotation]:
    rng = np.random.default_rng(1)
    return [
        Annotation(
            **{
                "annotation_id": f"{changes.get('run_id', 'a')}-{episode}-{step}",
                "run_id": "a",
                "request_id": None,
                "dataset_id": "d1",
                "episode_id": episode,
                "step": step,
                "critical": step % 8 == 1,
                "suggested_action": say(row, steps.observation[row], rng),
                "suggested_label": None,
                "implicit_reward": None,
                "confidence": 0.6 + 0.3 * (step % 8 == 1),
                "rationale": None,
                "model": "m",
                "prompt_version": None,
                **changes,
            }
        )
        for episode in range(EPISODES)
        for step in places
        for row in [*steps.rows_of([episode], [step])]
    ]


def assess(steps: StepArrays, notes: list[Annotation], space: Space = PUSH, **more: Any) -> Quality:
    return assess_run("a", notes, steps, space, **({"rejections": {}} | more))


def standings(quality: Quality) -> dict[str, str]:
    return {reason.about: reason.standing for reason in judge(quality).reasons}


def test_labels_by_a_rule_are_fit_for_training() -> None:
    steps = make_steps()
    quality = assess(steps, annotate(steps, by_rule))
    assert judge(quality).verdict == "fit for training"
    assert quality.consistency is not None
    assert quality.consistency.measure == "accuracy"
    assert quality.consistency.score > 0.9
    assert abs(quality.consistency.shuffled - 0.5) < 0.2
    assert (quality.labels, quality.critical_share) == (96, 0.5)
    assert quality.coverage is not None
    assert quality.coverage.episodes == 12
    assert quality.coverage.evenness > 0.8
    assert sum(quality.suggestions.values()) == 96


def test_coverage_of_a_large_dataset_is_that_of_steps_drawn_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = make_steps()
    notes = place_annotations(annotate(steps, by_rule), steps, PUSH)
    whole = measure_coverage(notes, steps)
    monkeypatch.setattr(placement, "ENOUGH_ROWS", 150)
    asked: list[int] = []

    def count(steps: StepArrays, rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return state_rows(steps, rows)

    monkeypatch.setattr(placement, "state_rows", count)
    some = measure_coverage(notes, steps)
    assert len(asked) == 1
    assert 150 < asked[0] <= 150 + len(notes) < len(steps)
    assert (some.episodes, some.episodes_in_all, some.by_tenth) == (whole.episodes, 12, whole.by_tenth)
    assert some.states == pytest.approx(whole.states, abs=0.1)
    assert some.outside == pytest.approx(whole.outside, abs=0.05)


def test_random_labels_are_unfit_and_the_verdict_says_why() -> None:
    steps = make_steps()
    quality = assess(steps, annotate(steps, at_random))
    judgement = judge(quality)
    assert judgement.verdict == "unfit for training"
    assert judgement.reasons[0].about == "consistency"
    assert judgement.reasons[0].text.startswith("labels do not follow from the states")


def test_mere_confirmations_teach_nothing() -> None:
    steps = make_steps()
    quality = assess(steps, annotate(steps, lambda row, state, rng: (float(steps.action[row]),)))
    assert quality.confirmation_share == 1.0
    assert standings(quality)["confirmations"] == "bad"


def test_one_suggestion_for_everything_is_unfit() -> None:
    steps = make_steps()
    quality = assess(steps, annotate(steps, lambda row, state, rng: (1.0,), suggested_label="right"))
    assert quality.suggestions == {"right": 96}
    assert standings(quality)["variety"] == "bad"


def test_labels_of_the_last_third_only_are_doubtful() -> None:
    steps = make_steps()
    quality = assess(steps, annotate(steps, by_rule, range(21, 30)))
    assert standings(quality)["time"] == "doubtful"
    assert quality.coverage is not None
    assert quality.coverage.by_tenth[:7] == (0,) * 7


def test_few_labels_none_and_many_rejections_are_said() -> None:
    steps = make_steps()
    few = assess(steps, annotate(steps, by_rule)[:10], rejections={"unknown_step": 4})
    assert (standings(few)["amount"], standings(few)["rejections"], few.consistency) == ("bad", "doubtful", None)
    assert "unknown_step 4" in next(r.text for r in judge(few).reasons if r.about == "rejections")
    none = assess(steps, [])
    assert (none.labels, none.coverage, judge(none).verdict) == (0, None, "too few to judge")
    assert judge(few).verdict == "too few to judge"


@pytest.mark.parametrize(("count", "verdict"), [(24, "too few to judge"), (59, "too few to judge"), (60, "unfit")])
def test_labels_are_judged_from_the_number_on_that_the_judgement_says_is_needed(count: int, verdict: str) -> None:
    steps = make_steps()
    judgement = judge(assess(steps, annotate(steps, lambda row, state, rng: (1.0,), suggested_label="right")[:count]))
    assert judgement.verdict.startswith(verdict)
    assert any("60 or more are needed" in reason.text for reason in judgement.reasons) == (count < 60)


def test_continuous_suggestions_are_explained_when_they_follow_a_rule_and_not_otherwise() -> None:
    steps = make_steps(BOX2)
    told = annotate(steps, lambda row, state, rng: (float(np.tanh(state[1])), float(np.tanh(-state[2]))))
    noise = annotate(steps, lambda row, state, rng: tuple(rng.uniform(-1, 1, 2).tolist()))
    good, bad = (assess(steps, notes, BOX2) for notes in (told, noise))
    assert good.consistency is not None
    assert bad.consistency is not None
    assert good.consistency.measure == "explained"
    assert good.consistency.score > 0.8
    assert bad.consistency.score < 0.1
    assert (judge(good).verdict, judge(bad).verdict) == ("fit for training", "unfit for training")


@pytest.mark.slow
def test_samples_and_models_are_compared_and_a_judge_without_agreement_is_doubted() -> None:
    steps = make_steps()
    first = annotate(steps, by_rule)
    sample = [replace(note, annotation_id=f"s{i}") for i, note in enumerate(first[:40])]
    stranger = annotate(steps, at_random, run_id="b", model="other")
    quality = assess(steps, [*first, *sample, *stranger])
    assert (quality.agreement.samples.pairs, quality.agreement.samples.agreement) == (40, 1.0)
    assert quality.agreement.models.pairs == 136
    assert quality.agreement.models.agreement == pytest.approx(0.5, abs=0.12)
    reasons = [reason for reason in judge(quality).reasons if reason.about == "opinions"]
    assert [reason.standing for reason in reasons] == ["doubtful", "good"]
    assert quality.calibration is not None
    assert quality.calibration.sources == ("opinions", "out_of_fold")


def placed(steps: StepArrays, confidence: list[float]) -> AnnotationColumns:
    notes = annotate(steps, by_rule)[: len(confidence)]
    return place_annotations([replace(n, confidence=c) for n, c in zip(notes, confidence, strict=True)], steps, PUSH)


def test_calibration_is_the_agreement_in_each_bin_of_confidence() -> None:
    notes = placed(make_steps(), [0.45, 0.45, 0.75, 0.75, 0.95, 0.95, 1.0, 1.0])
    agreed = np.array([0, 0, 0, 1, 1, 1, np.nan, 1.0])
    found = measure_calibration(notes, {"opinions": agreed, "replays": np.full(8, np.nan)})
    assert found.sources == ("opinions",)
    bins = [(b.low, b.labels, b.compared["opinions"], b.agreement["opinions"]) for b in found.bins]
    assert bins == [(0.0, 2, 2, 0.0), (0.7, 2, 2, 0.5), (0.9, 4, 3, 1.0)]
    # |0.45 - 0| * 2, |0.75 - 0.5| * 2, |0.975 - 1| * 3, over 7
    assert found.errors["opinions"] == pytest.approx((0.9 + 0.5 + 0.075) / 7)
    assert found.rise["opinions"] == pytest.approx(1.0 - 0.25, abs=0.15)


def test_confidence_that_misleads_is_doubtful() -> None:
    steps = make_steps()
    rng = np.random.default_rng(3)
    notes = [
        replace(note, suggested_action=(float(rng.integers(2)),)) if (note.confidence or 0) > 0.8 else note
        for note in annotate(steps, by_rule)
    ]
    quality = assess(steps, notes)
    assert quality.calibration is not None
    assert quality.calibration.rise["out_of_fold"] < -0.2
    assert standings(quality)["confidence"] == "doubtful"


def test_state_coverage_falls_when_labels_stay_in_one_region() -> None:
    steps = make_steps()
    spread = annotate(steps, by_rule)
    corner = [note for note in spread if steps.observation[steps.rows_of([note.episode_id], [note.step])[0]][0] > 0.8]
    everywhere, there = (measure_coverage(place_annotations(notes, steps, PUSH), steps) for notes in (spread, corner))
    assert there.states < 0.6 * everywhere.states
    assert there.states < there.states_by_chance
    assert everywhere.states == pytest.approx(everywhere.states_by_chance, abs=0.1)


def test_critical_steps_with_large_rewards_have_large_td_errors() -> None:
    steps = make_steps()
    notes = annotate(steps, by_rule, range(1, LENGTH))
    loud = [
        replace(note, critical=abs(steps.reward[steps.rows_of([note.episode_id], [note.step])[0]]) > 1.5)
        for note in notes
    ]
    found = measure_salience(place_annotations(loud, steps, PUSH), steps)
    plain = measure_salience(place_annotations(notes, steps, PUSH), steps)
    assert found is not None
    assert plain is not None
    assert found.critical < plain.critical
    assert found.td_ratio > plain.td_ratio
    assert plain.td_rank == pytest.approx(0.5, abs=0.08)


def test_returns_are_discounted_within_their_episode() -> None:
    steps = make_steps()
    returns = discounted_returns(steps, 0.5)
    last = LENGTH - 1
    assert returns[last] == steps.reward[last]
    assert returns[last - 1] == pytest.approx(steps.reward[last - 1] + 0.5 * steps.reward[last])
    assert returns[LENGTH] == 0


def test_replays_count_as_evidence_and_do_not_remove_labels() -> None:
    steps = make_steps()
    notes = annotate(steps, by_rule)
    kept = {"dataset_id": "d1", "policy_sha256": "p", "mode": "greedy", "continuations": 1, "exact": True, "detail": ""}
    measured = [
        LabelReplay(
            label_replay_id=str(i),
            annotation_id=note.annotation_id,
            episode_id=note.episode_id,
            step=note.step,
            suggested_return=0.0,
            logged_return=1.0,
            advantage=-1.0,
            advantages=(-1.0,),
            standard_error=None,
            environment_steps=7,
            **kept,
        )
        for i, note in enumerate(notes[:20])
    ]
    quality = assess(steps, notes, replays=measured)
    assert quality.labels == 96
    assert quality.replays is not None
    found = quality.replays
    assert (found.replayed, found.advantage, found.worse, found.environment_steps) == (20, -1.0, 1.0, 140)
    assert standings(quality)["replays"] == "doubtful"


def test_clusters_that_are_alike_widen_the_standard_error() -> None:
    values = np.repeat([1.0, 0.0, 1.0, 0.0], 5)
    assert clustered_error(values, np.arange(20)) == pytest.approx(0.5 / np.sqrt(19), rel=1e-6)
    assert clustered_error(values, np.repeat(np.arange(4), 5)) == pytest.approx(0.5 / np.sqrt(3), rel=1e-6)


def test_actions_agree_within_five_percent_of_their_range() -> None:
    left = np.array([[0.0, 0.0], [0.0, 0.0]])
    right = np.array([[0.1, -0.1], [0.11, 0.0]])
    assert same_actions(left, right, BOX2).tolist() == [True, False]


def test_the_order_of_annotations_changes_nothing() -> None:
    steps = make_steps()
    notes = annotate(steps, by_rule)
    twins = [replace(note, annotation_id=f"t{i}") for i, note in enumerate(notes[:9])]
    one = measure_agreement(place_annotations([*notes, *twins], steps, PUSH), "a")
    assert one.samples.pairs == 9
    scores = {
        measure_consistency(place_annotations(order, steps, PUSH)).score  # pyright: ignore[reportOptionalMemberAccess]
        for order in (notes, notes[::-1])
    }
    assert len({round(score, 9) for score in scores}) == 1
