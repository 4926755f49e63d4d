from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from soak import SOAK

import refine as room
from refine.labels.labels import Labels, arm_labels
from refine.policies.mlp import MlpPolicy
from refine.training.train import LEAST_WIDTH, RefineConfig, fit_noise, refine
from storage.datasets.reader import StepArrays
from storage.errors import BadInput
from storage.schema import Space

# A gridworld whose best policies are known: from every cell, right or down, while there is room.
SIDE = 4
GOAL = SIDE * SIDE - 1
CELLS = Space(kind="discrete", dtype="int64", size=1, n=SIDE * SIDE)
MOVES = Space(kind="discrete", dtype="int64", size=1, n=4)
RIGHT, LEFT, DOWN, UP = range(4)
OFFSETS = np.array([[0, 1], [0, -1], [1, 0], [-1, 0]])

POINTS = Space(kind="box", dtype="float32", size=2, low=(-1.0, -1.0), high=(1.0, 1.0))
FORCES = Space(kind="box", dtype="float32", size=2, low=(-2.0, 0.0), high=(2.0, 4.0))


def move(cell: int, action: int) -> int:
    row, column = np.clip(np.array(divmod(cell, SIDE)) + OFFSETS[action], 0, SIDE - 1)
    return int(row * SIDE + column)


def best_moves(cell: int) -> set[int]:
    row, column = divmod(cell, SIDE)
    return ({DOWN} if row < SIDE - 1 else set()) | ({RIGHT} if column < SIDE - 1 else set())


def count_solved(policy: MlpPolicy) -> int:
    """Starting cells from which the greedy policy reaches the goal by a shortest path."""
    actions = policy.act(np.arange(SIDE * SIDE)).actions
    return sum(actions[cell] in best_moves(cell) and reaches(actions, cell) for cell in range(GOAL))


def reaches(actions: np.ndarray, cell: int) -> bool:
    for _ in range(2 * (SIDE - 1)):
        if cell == GOAL:
            return True
        if actions[cell] not in best_moves(cell):
            return False
        cell = move(cell, int(actions[cell]))
    return cell == GOAL


def wander(episodes: int = 120, length: int = 15) -> StepArrays:
    """Random walks with reward 0; half of them would be enough to see every cell and move."""
    rng = np.random.default_rng(1)
    rows: list[tuple[int, ...]] = []
    for episode in range(episodes):
        cell = int(rng.integers(0, GOAL))
        for step in range(length):
            action = int(rng.integers(0, 4))
            following = move(cell, action)
            over = following == GOAL
            rows.append((episode, step, cell, action, over, not over and step == length - 1, 0))
            cell = following
            if over:
                break
        rows.append((episode, step + 1, cell, 0, 0, 0, 1))
    columns = np.array(rows).T
    flags = columns[4:].astype(np.bool_)
    return StepArrays(
        columns[0], columns[1].astype(np.int32), columns[2][:, None], columns[3], np.zeros(len(rows)), *flags, None
    )


def walker() -> MlpPolicy:
    """A baseline that walks left everywhere."""
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(SIDE * SIDE, 32)) * 0.5, rng.normal(size=(32, 4)) * 0.2)
    return MlpPolicy(CELLS, MOVES, weights, (np.zeros(32), np.array([0, 1.5, 0, 0])), "tanh", "logits")


STEPS = wander()
ACTED = np.flatnonzero(~STEPS.is_final)
FIRST_VISITS = np.array([ACTED[STEPS.observation[ACTED, 0] == cell][0] for cell in range(GOAL)])
LABELS = Labels(FIRST_VISITS, np.array([min(best_moves(c)) for c in range(GOAL)]), np.ones(GOAL), np.zeros(GOAL))
LONG = RefineConfig(betas=(0.1,), snapshots=(300,))
SHORT = RefineConfig(betas=(0.1,), snapshots=(20, 50), critic_steps=30)


def target_force(points: np.ndarray) -> np.ndarray:
    return np.stack([1.5 * points[:, 0], 2 + 1.5 * points[:, 1]], axis=1)


def pusher(head: str) -> MlpPolicy:
    rng = np.random.default_rng(0)
    weights = tuple(rng.normal(size=size) / np.sqrt(size[0]) for size in [(2, 32), (32, 2)])
    last = np.array([0, 2.0]) if head == "clip" else np.zeros(2)
    return MlpPolicy(POINTS, FORCES, weights, (np.zeros(32), last), "tanh", head)


def push(policy: MlpPolicy, count: int = 600) -> StepArrays:
    """Episodes of one step; the reward is the negative squared distance to the known best force."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (2 * count, 2)).astype(np.float32)
    noise = rng.normal(size=(2 * count, 2)) * 0.6
    forces = np.clip(policy.act(points).actions + noise, [-2, 0], [2, 4]).astype(np.float32)
    final = np.arange(2 * count) % 2 == 1
    forces[final] = 0
    rewards = np.where(final, 0, -np.square(forces - target_force(points)).sum(axis=1))
    step = np.tile(np.arange(2, dtype=np.int32), count)
    episode = np.repeat(np.arange(count), 2)
    return StepArrays(episode, step, points, forces, rewards, ~final, np.zeros(2 * count, np.bool_), final, None)


def force_error(policy: MlpPolicy) -> float:
    points = np.random.default_rng(9).uniform(-1, 1, (300, 2)).astype(np.float32)
    return float(np.sqrt(np.square(policy.act(points).actions - target_force(points)).mean()))


@pytest.mark.slow
def test_labels_of_a_known_policy_are_attained_and_shuffled_ones_are_not() -> None:
    baseline = walker()
    solved = {}
    for arm in ("labels", "shuffled", "no_labels"):
        given = arm_labels(arm, LABELS, STEPS, MOVES, np.random.default_rng(0))
        solved[arm] = count_solved(refine(STEPS, given, baseline, LONG)[0].policy)

    assert count_solved(baseline) == 0
    assert solved["labels"] == GOAL
    assert solved["shuffled"] < GOAL // 2
    assert solved["no_labels"] < GOAL // 2


@pytest.mark.slow
def test_implicit_rewards_alone_lead_to_the_goal_and_shuffled_ones_do_not() -> None:
    seen, taken = STEPS.observation[ACTED, 0], STEPS.action[ACTED]
    praise = [action in best_moves(cell) for cell, action in zip(seen, taken, strict=True)]
    labels = Labels(ACTED, STEPS.action[ACTED], np.zeros(len(ACTED)), np.where(praise, 1.0, -1.0))
    config = RefineConfig(mode="R", betas=(0.1,), snapshots=(150,), gamma=0.9, critic_steps=300, learning_rate=3e-3)
    shuffled = arm_labels("shuffled", labels, STEPS, MOVES, np.random.default_rng(0))

    assert count_solved(refine(STEPS, labels, walker(), config)[0].policy) == GOAL
    assert count_solved(refine(STEPS, shuffled, walker(), config)[0].policy) < GOAL // 2


@pytest.mark.parametrize("head", ["clip", "tanh"])
def test_continuous_labels_of_a_known_policy_are_approached_and_shuffled_ones_are_not(head: str) -> None:
    baseline = pusher(head)
    steps = push(baseline)
    rows = np.flatnonzero(~steps.is_final)[:150]
    labels = Labels(rows, target_force(steps.observation[rows]).astype(float), np.ones(150), np.zeros(150))
    shuffled = arm_labels("shuffled", labels, steps, FORCES, np.random.default_rng(0))
    config = RefineConfig(betas=(0.03,), snapshots=(150,), learning_rate=3e-3)

    assert force_error(baseline) > 0.6
    assert force_error(refine(steps, labels, baseline, config)[0].policy) < 0.15
    assert force_error(refine(steps, shuffled, baseline, config)[0].policy) > 0.7


@pytest.mark.slow
def test_a_continuous_critic_improves_on_logged_rewards() -> None:
    baseline = pusher("clip")
    steps = push(baseline)
    rows = np.flatnonzero(~steps.is_final)[:50]
    labels = Labels(rows, steps.action[rows].astype(float), np.zeros(50), np.zeros(50))
    config = RefineConfig(mode="R", betas=(0.1,), snapshots=(200,), critic_steps=400)

    assert force_error(refine(steps, labels, baseline, config)[0].policy) < 0.4


@pytest.mark.parametrize("mode", ["A", "R", "RA"])
def test_two_runs_give_the_same_bits_and_another_seed_does_not(mode: str) -> None:
    config = SHORT.model_copy(update={"mode": mode})

    first, again = (refine(STEPS, LABELS, walker(), config) for _ in range(2))
    other = refine(STEPS, LABELS, walker(), config.model_copy(update={"seed": 1}))

    assert [s.policy.sha256 for s in first] == [s.policy.sha256 for s in again]
    assert first[-1].policy.sha256 != other[-1].policy.sha256


def test_refining_leaves_the_random_state_of_others_alone() -> None:
    import torch

    torch.manual_seed(3)
    expected = torch.rand(4)
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    refine(STEPS, LABELS, walker(), SHORT)

    assert torch.equal(torch.rand(4), expected)
    assert torch.get_num_threads() == threads


def test_there_is_one_snapshot_per_beta_and_stop() -> None:
    config = RefineConfig(betas=(0.3, 0.1), snapshots=(5, 10, 20))

    snapshots = refine(STEPS, LABELS, walker(), config)

    assert [(s.beta, s.step) for s in snapshots] == [(b, step) for b in (0.3, 0.1) for step in (5, 10, 20)]
    assert len({s.policy.sha256 for s in snapshots}) == 6
    assert snapshots[0].name == "beta 0.3, step 5"


def test_a_later_snapshot_continues_the_training_of_an_earlier_one() -> None:
    whole = refine(STEPS, LABELS, walker(), RefineConfig(betas=(0.1,), snapshots=(50,)))
    stopped = refine(STEPS, LABELS, walker(), RefineConfig(betas=(0.1,), snapshots=(20, 50)))

    assert whole[0].policy.sha256 == stopped[1].policy.sha256


def test_defaults_depend_on_the_kind_of_actions_and_given_values_stay() -> None:
    config = RefineConfig(betas=(0.5,))

    assert config.completed(MOVES).betas == config.completed(FORCES).betas == (0.5,)
    assert config.completed(MOVES).snapshots == (30, 60, 100, 160, 300)
    assert config.completed(FORCES).snapshots == (100, 200, 400, 700, 1000)


@pytest.mark.parametrize("space", [MOVES, FORCES])
def test_dense_advice_is_learnt_for_longer_but_not_beside_rewards(space: Space) -> None:
    dense, sparse = RefineConfig().completed(space, dense=True), RefineConfig().completed(space)

    assert dense.snapshots == (*(stop for stop in sparse.snapshots or () if stop < 1_000), 1_000, 4_000, 10_000)
    assert dense.betas == (min(sparse.betas or ()),)
    assert RefineConfig(snapshots=(5,)).completed(space, dense=True).snapshots == (5,)
    for other in (RefineConfig(mode="RA"), RefineConfig(algorithm="bc")):
        assert other.completed(space, dense=True) == other.completed(space)


def noisy(deviations: tuple[float, float]) -> MlpPolicy:
    return replace(pusher("clip"), log_std=np.log(deviations))


def advise(steps: StepArrays, suggestions: np.ndarray, every: int = 1) -> Labels:
    """Suggestions, (L, 2), at every so many-th step."""
    rows = np.flatnonzero(~steps.is_final)[::every]
    return Labels(rows, suggestions, np.ones(len(rows)), np.zeros(len(rows)))


def test_the_fitted_noise_is_what_the_means_leave_of_the_suggestions() -> None:
    policy, steps = noisy((0.5, 0.5)), push(pusher("clip"), 4_000)
    means = policy.forward(steps.observation[~steps.is_final])
    said = np.clip(means + np.random.default_rng(0).normal(0, (0.1, 0.2), means.shape), FORCES.low, FORCES.high)

    found = fit_noise(policy, policy, steps, advise(steps, said), 0.1)

    assert np.exp(found.log_std) == pytest.approx([0.1, 0.2], rel=0.06)


def test_errors_at_a_few_switches_are_no_noise_for_the_other_states() -> None:
    policy, steps = noisy((0.5, 0.5)), push(pusher("clip"))
    said = policy.act(steps.observation[~steps.is_final]).actions + np.array([0.01, 0.02])
    said[::10] = [2, 0]

    found = fit_noise(policy, policy, steps, advise(steps, said), 0.1)

    assert np.exp(found.log_std) == pytest.approx([0.0148, 0.0297], rel=0.01)


def test_a_sure_suggestion_weighs_more_in_the_fitted_noise() -> None:
    policy, steps = noisy((0.5, 0.5)), push(pusher("clip"))
    played = policy.act(steps.observation[~steps.is_final]).actions
    errors = np.where(np.arange(600) % 3 > 0, 0.1, 0.2)[:, None]
    labels = replace(advise(steps, played + errors), weights=np.where(errors[:, 0] > 0.15, 1.0, 0.3))

    found = fit_noise(policy, policy, steps, labels, 0.1)

    assert np.exp(found.log_std) == pytest.approx([0.297, 0.297], rel=0.01), "two in three are 0.1, with less weight"


def test_steps_without_a_suggestion_hold_the_noise_at_the_baselines() -> None:
    policy, steps = noisy((0.5, 0.8)), push(pusher("clip"))
    agreed = advise(steps, policy.act(steps.observation[~steps.is_final][::2]).actions, every=2)

    found = fit_noise(policy, policy, steps, agreed, 0.1)

    assert np.exp(found.log_std) == pytest.approx(np.array([0.5, 0.8]) * (0.1 / 1.1) ** 0.5, rel=1e-4)


def test_fitted_noise_neither_collapses_nor_grows() -> None:
    policy, steps = noisy((0.5, 0.003)), push(pusher("clip"))
    beyond = replace(policy, biases=(policy.biases[0], np.array([-9.0, 9.0])))
    played, other = np.tile([-2.0, 4.0], (600, 1)), np.tile([2.0, 0.0], (600, 1))

    closest = fit_noise(beyond, policy, steps, advise(steps, played), 0.1)
    farthest = fit_noise(beyond, policy, steps, advise(steps, other), 0.1)

    assert np.exp(closest.log_std) == pytest.approx([LEAST_WIDTH * 2, 0.003]), "0.003 is below the floor"
    assert np.exp(farthest.log_std) == pytest.approx([0.5, 0.003])


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_noise_is_fitted_to_dense_suggestions_only(engine: str) -> None:
    policy, steps = noisy((2, 2)), push(pusher("clip"))
    said = target_force(steps.observation[~steps.is_final])
    config = RefineConfig(betas=(0.03,), snapshots=(1,), engine=engine)

    dense, sparse = (refine(steps, advise(steps, said[::n], n), policy, config)[0].policy for n in (1, 3))

    assert (dense.log_std < policy.log_std).all()
    np.testing.assert_array_equal(sparse.log_std, policy.log_std)


def test_a_larger_beta_stays_closer_to_the_baseline() -> None:
    baseline = walker()
    near, far = (
        refine(STEPS, LABELS, baseline, RefineConfig(betas=(beta,), snapshots=(150,)))[0].policy for beta in (10.0, 0.1)
    )

    def distance(policy: MlpPolicy) -> float:
        return float(np.abs(policy.forward(np.arange(16)) - baseline.forward(np.arange(16))).mean())

    assert distance(near) < distance(far) / 2


def test_confidence_decides_between_two_annotators_who_disagree() -> None:
    rows = np.repeat(FIRST_VISITS, 2)
    suggestions = np.tile([RIGHT, UP], GOAL)
    for sure, unsure, expected in ((0.9, 0.1, RIGHT), (0.1, 0.9, UP)):
        labels = Labels(rows, suggestions, np.tile([sure, unsure], GOAL), np.zeros(2 * GOAL))
        policy = refine(STEPS, labels, walker(), LONG)[0].policy
        assert (policy.act(np.arange(GOAL)).actions == expected).all()


@pytest.mark.slow
def test_a_baseline_of_q_values_is_refined_as_logits() -> None:
    logits = walker()
    weights = (*logits.weights[:-1], logits.weights[-1] * 50)
    biases = (*logits.biases[:-1], logits.biases[-1] * 50)
    values = MlpPolicy(CELLS, MOVES, weights, biases, "tanh", "q_values")

    found = refine(STEPS, LABELS, values, LONG)[0].policy

    assert found.head == "logits"
    assert count_solved(found) == GOAL


def test_every_step_of_every_training_is_counted() -> None:
    seen: list[tuple[int, int]] = []

    config = RefineConfig(mode="RA", betas=(0.1, 0.3), snapshots=(5, 10), critic_steps=7)
    refine(STEPS, LABELS, walker(), config, progress=lambda done, total: seen.append((done, total)))

    assert seen == [(done, 34) for done in range(1, 35)]


def test_nothing_is_printed_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    refine(STEPS, LABELS, walker(), SHORT)

    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_says_so() -> None:
    unbounded = replace(walker(), activation="relu")
    with pytest.raises(BadInput, match="diverged before step 20"):
        refine(STEPS, LABELS, unbounded, SHORT.model_copy(update={"learning_rate": 1e25}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"betas": (-0.1,)}, "none may be negative"),
        ({"betas": (float("nan"),)}, "finite"),
        ({"snapshots": (30, 10)}, "ascending"),
        ({"snapshots": (0, 10)}, "from 1"),
        ({"snapshots": (20_000,)}, "at most 10000"),
        ({"batch_size": 64, "annotated_per_batch": 64}, "must be left for the others"),
    ],
)
def test_an_impossible_configuration_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        RefineConfig(**fields)


def test_labels_of_another_dataset_are_refused() -> None:
    beyond = Labels(LABELS.rows + len(STEPS), LABELS.suggestions, LABELS.weights, LABELS.implicit_rewards)
    with pytest.raises(BadInput, match="the dataset has rows"):
        refine(STEPS, beyond, walker(), SHORT)


@pytest.mark.slow
def test_refinement_runs_where_no_environment_can_be_made_or_stepped() -> None:
    """A new process in which every way into a simulator raises, and nothing but d3rlpy's own imports knows of one."""
    modes = ("A", "R", "RA") if SOAK else ("RA",)
    code = f"""
        import sys
        sys.path.insert(0, "tests")
        import gym_notices.notices as old
        old.notices.clear()
        import gymnasium

        def forbidden(*args, **kwargs):
            raise AssertionError("a simulator was used")

        gymnasium.make = gymnasium.make_vec = gymnasium.spec = forbidden
        gymnasium.Env.step = gymnasium.Env.reset = forbidden
        from test_refine_train import LABELS, SHORT, STEPS, refine, walker

        for mode in {modes}:
            print(mode, len(refine(STEPS, LABELS, walker(), SHORT.model_copy(update={{"mode": mode}}))))
    """
    root = Path(room.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout == "".join(f"{mode} 2\n" for mode in modes), done.stderr
    assert "unmaintained" not in done.stderr


def test_no_file_of_this_room_imports_a_simulator_or_a_language_model() -> None:
    forbidden = {"gymnasium", "gym", "anthropic", "duckdb", "prefect", "typer", "annotate", "flows"}
    files = sorted(Path(room.__file__).parent.rglob("*.py"))
    assert len(files) > 15
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & forbidden, f"{file.name} imports {names}"
