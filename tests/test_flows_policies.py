"""Policies by name: what is converted acts as the original did, the rest is asked row by row, what is wrong is said."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from flows.policies import loading as policies
from flows.policies.loading import FORMS
from flows.simulation.actors import ForeignActor, NetworkActor, check_mode
from flows.simulation.environments import Spaces, make_environment, spaces_of
from flows.simulation.rollouts import acting_generator, rollout
from flows.simulation.trust import Named
from refine.policies import d3rlpy_models as learnables
from refine.policies import sb3_models as baselines
from refine.policies.mlp import MlpPolicy
from storage.errors import BadInput, DamagedStore, Prerequisite, TrajnoteWarning
from storage.policies.policies import save_policy
from storage.schema import Space
from storage.store import Store

sb3 = pytest.importorskip("stable_baselines3")
import d3rlpy  # noqa: E402  (after refine.policies.sb3_models, which silences the old gym)

torch.set_num_threads(1)
CARTPOLE = ("CartPole-v1", {})
LANDER = ("LunarLander-v3", {"continuous": True})


def load_policy(spec: str, spaces: Spaces, store: Store | None = None) -> policies.Policy:
    """As the user names it."""
    return policies.load_policy(Named(spec), spaces, store)


def spaces_for(env_id: str, env_kwargs: dict[str, Any]) -> Spaces:
    return spaces_of(make_environment(env_id, env_kwargs))


def observations_for(spaces: Spaces, count: int = 200) -> np.ndarray:
    """Random observations, of a spread that drives some units into saturation."""
    rng = np.random.default_rng(0)
    return (2 * rng.standard_normal((count, spaces.observation.size))).astype(np.float32)


def small_network(spaces: Spaces, seed: int = 0) -> MlpPolicy:
    rng = np.random.default_rng(seed)
    n, k = spaces.observation.size, spaces.action.n or spaces.action.size
    return MlpPolicy(
        *spaces,
        (rng.standard_normal((n, k)),),
        (np.zeros(k),),
        "tanh",
        "logits" if spaces.action.is_discrete else "clip",
    )


SB3_MODELS = [
    ("PPO", CARTPOLE, {"n_steps": 8, "batch_size": 8}, "logits"),
    ("A2C", CARTPOLE, {"policy_kwargs": {"activation_fn": torch.nn.ReLU, "net_arch": [8, 8, 8]}}, "logits"),
    ("DQN", CARTPOLE, {"buffer_size": 10}, "q_values"),
    ("PPO", LANDER, {"n_steps": 8, "batch_size": 8}, "mean"),
    ("SAC", LANDER, {"buffer_size": 10}, "mean"),
    ("TD3", LANDER, {"buffer_size": 10}, "mean"),
    ("SAC", ("Pendulum-v1", {}), {"buffer_size": 10}, "mean"),
    ("PPO", ("FrozenLake-v1", {}), {"n_steps": 8, "batch_size": 8}, "logits"),
]


@pytest.mark.parametrize(("algorithm", "environment", "arguments", "kind"), SB3_MODELS)
def test_a_model_of_stable_baselines3_acts_as_a_portable_network(
    algorithm: str, environment: Any, arguments: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    spaces = spaces_for(*environment)
    model = getattr(sb3, algorithm)("MlpPolicy", make_environment(*environment), seed=1, device="cpu", **arguments)
    if algorithm == "PPO":  # its last layer begins so small that a constant would act alike
        with torch.no_grad():
            model.policy.action_net.weight *= 100
    model.save(tmp_path / "model.zip")
    policy = load_policy(f"sb3:{algorithm}:{tmp_path / 'model'}", spaces)
    assert isinstance(policy, NetworkActor)
    assert policy.output_kind == kind
    observations = np.arange(16) if spaces.observation.is_discrete else observations_for(spaces)
    expected, _ = model.predict(observations, deterministic=True)
    actions = policy.act(observations).actions
    if spaces.action.is_discrete:
        assert len(set(actions.tolist())) > 1
        np.testing.assert_array_equal(actions, expected)
    else:
        np.testing.assert_allclose(actions, expected, atol=2e-6)
        assert np.ptp(actions) > 0.1


def test_a_continuous_ppo_keeps_its_standard_deviation_and_can_be_sampled() -> None:
    spaces = spaces_for(*LANDER)
    model = sb3.PPO("MlpPolicy", make_environment(*LANDER), n_steps=8, batch_size=8, device="cpu")
    with torch.no_grad():
        model.policy.log_std.copy_(torch.tensor([-1.0, -2.0]))
    network = baselines.from_sb3(model, *spaces)
    np.testing.assert_array_equal(network.log_std, np.float32([-1.0, -2.0]))
    rows = np.zeros((4000, 8), np.float32)
    actions = network.act(rows, mode="sampled", rngs=[acting_generator(seed) for seed in range(4000)]).actions
    np.testing.assert_allclose(actions.std(axis=0), np.exp([-1.0, -2.0]), rtol=0.05)


@pytest.mark.parametrize(
    ("algorithm", "environment", "arguments"),
    [
        ("DQN", CARTPOLE, {"buffer_size": 10, "policy_kwargs": {"activation_fn": torch.nn.ELU}}),
        ("SAC", LANDER, {"buffer_size": 10, "policy_kwargs": {"activation_fn": torch.nn.SiLU}}),
    ],
)
def test_a_model_that_is_no_plain_perceptron_is_asked_row_by_row(
    algorithm: str, environment: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    spaces = spaces_for(*environment)
    model = getattr(sb3, algorithm)("MlpPolicy", make_environment(*environment), seed=1, device="cpu", **arguments)
    model.save(tmp_path / "model.zip")
    policy = load_policy(f"sb3:{algorithm}:{tmp_path / 'model.zip'}", spaces)
    assert isinstance(policy, ForeignActor)
    assert not isinstance(policy, NetworkActor | MlpPolicy)
    assert policy.output_kind == ("q_values" if algorithm == "DQN" else "mean")
    observations = observations_for(spaces, 20)
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_allclose(policy.act(observations).actions, expected, atol=1e-6)
    with pytest.raises(BadInput, match="Use --mode greedy"):
        check_mode(policy, "sampled")


def test_convolutions_are_refused_in_words() -> None:
    box = gym_spaces.Box(0, 255, (1, 36, 36), np.uint8)
    policy = sb3.common.policies.ActorCriticCnnPolicy(box, gym_spaces.Discrete(2), lambda _: 0.0)
    model = type("PPO", (), {"policy": policy, "policy_kwargs": {}})()
    with pytest.raises(baselines.NotAnMlpError, match="sees through an extractor with weights of its own"):
        baselines.from_sb3(model, *spaces_for(*CARTPOLE))


def test_a_model_for_other_spaces_or_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    model = sb3.PPO("MlpPolicy", make_environment("Acrobot-v1"), n_steps=8, batch_size=8, device="cpu")
    model.save(tmp_path / "model.zip")
    spaces = spaces_for(*CARTPOLE)
    with pytest.raises(BadInput, match="observation space with size 6; the environment has 4"):
        load_policy(f"sb3:PPO:{tmp_path / 'model.zip'}", spaces)
    with pytest.raises(BadInput, match="is not a DQN model, which is a Q network; its weights"):
        load_policy(f"sb3:DQN:{tmp_path / 'model.zip'}", spaces)
    with pytest.raises(BadInput, match="ALGO one of PPO, A2C, DQN, SAC, TD3, DDPG, QRDQN, TQC, TRPO, ARS"):
        load_policy(f"sb3:{tmp_path / 'model.zip'}", spaces)
    with pytest.raises(BadInput, match="There is no file"):
        load_policy("sb3:PPO:absent", spaces)


def d3rlpy_algorithm(config: Any, spaces: Spaces) -> Any:
    torch.manual_seed(3)
    algorithm = config.create()
    algorithm.create_impl((spaces.observation.size,), spaces.action.n or spaces.action.size)
    return algorithm


MEAN, STD = np.linspace(-1, 1, 4), np.linspace(0.5, 2, 4)
ENCODER = d3rlpy.models.VectorEncoderFactory(hidden_units=[16, 16])
TANH = d3rlpy.models.VectorEncoderFactory(hidden_units=[16], activation="tanh")
PENDULUM_SCALER = d3rlpy.preprocessing.MinMaxActionScaler(minimum=np.array([-2.0]), maximum=np.array([2.0]))
D3RLPY_CONFIGS = [
    (d3rlpy.algos.DiscreteCQLConfig(encoder_factory=ENCODER), CARTPOLE, "q_values"),
    (
        d3rlpy.algos.DQNConfig(
            encoder_factory=TANH, observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(MEAN, STD)
        ),
        CARTPOLE,
        "q_values",
    ),
    (
        d3rlpy.algos.DiscreteBCConfig(
            encoder_factory=ENCODER, observation_scaler=d3rlpy.preprocessing.MinMaxObservationScaler(MEAN - 3, MEAN + 2)
        ),
        CARTPOLE,
        "logits",
    ),
    (d3rlpy.algos.DiscreteSACConfig(actor_encoder_factory=ENCODER), CARTPOLE, "logits"),
    (d3rlpy.algos.BCConfig(encoder_factory=ENCODER), LANDER, "mean"),
    (d3rlpy.algos.BCConfig(encoder_factory=ENCODER, policy_type="stochastic"), LANDER, "mean"),
    (d3rlpy.algos.TD3PlusBCConfig(actor_encoder_factory=ENCODER), LANDER, "mean"),
    (d3rlpy.algos.IQLConfig(actor_encoder_factory=ENCODER), LANDER, "mean"),
    (d3rlpy.algos.CQLConfig(actor_encoder_factory=ENCODER, action_scaler=PENDULUM_SCALER), ("Pendulum-v1", {}), "mean"),
]


@pytest.mark.parametrize(("config", "environment", "kind"), D3RLPY_CONFIGS)
def test_a_model_of_d3rlpy_acts_as_a_portable_network(config: Any, environment: Any, kind: str, tmp_path: Path) -> None:
    spaces = spaces_for(*environment)
    algorithm = d3rlpy_algorithm(config, spaces)
    algorithm.save(str(tmp_path / "model.d3"))
    policy = load_policy(f"d3rlpy:{tmp_path / 'model.d3'}", spaces)
    assert isinstance(policy, NetworkActor)
    assert policy.output_kind == kind
    observations = observations_for(spaces)
    expected = algorithm.predict(observations)
    actions = policy.act(observations).actions
    if spaces.action.is_discrete:
        assert len(set(actions.tolist())) > 1
        np.testing.assert_array_equal(actions, expected)
    else:
        np.testing.assert_allclose(actions, expected, atol=2e-6)
        assert np.ptp(actions) > 0.1


@pytest.mark.parametrize(
    ("config", "environment", "reason"),
    [
        (d3rlpy.algos.DQNConfig(encoder_factory=ENCODER, n_critics=2), CARTPOLE, "one with a plain mean"),
        (
            d3rlpy.algos.DQNConfig(encoder_factory=ENCODER, q_func_factory=d3rlpy.models.QRQFunctionFactory()),
            CARTPOLE,
            "one with a plain mean",
        ),
        (
            d3rlpy.algos.DQNConfig(encoder_factory=d3rlpy.models.VectorEncoderFactory([8], use_layer_norm=True)),
            CARTPOLE,
            "Linear, ReLU, LayerNorm",
        ),
        (d3rlpy.algos.TD3PlusBCConfig(actor_encoder_factory=ENCODER), ("Pendulum-v1", {}), r"from \[-1.\] to \[1.\]"),
        (d3rlpy.algos.DiscreteBCQConfig(encoder_factory=ENCODER), CARTPOLE, "not the output of one network"),
    ],
)
def test_what_is_not_one_plain_network_is_refused_and_asked_instead(
    config: Any, environment: Any, reason: str, tmp_path: Path
) -> None:
    spaces = spaces_for(*environment)
    algorithm = d3rlpy_algorithm(config, spaces)
    with pytest.raises(baselines.NotAnMlpError, match=reason):
        learnables.from_d3rlpy(algorithm, *spaces)
    algorithm.save(str(tmp_path / "model_10.d3"))
    policy = load_policy(f"d3rlpy:{tmp_path}", spaces)
    observations = observations_for(spaces, 20)
    np.testing.assert_allclose(policy.act(observations).actions, algorithm.predict(observations), atol=1e-6)


def test_the_newest_model_of_a_logged_run_acts(tmp_path: Path) -> None:
    for name in ("model_900.d3", "model_1000.d3", "model.d3", "params.json"):
        (tmp_path / name).touch()
    assert learnables.find_learnable(tmp_path) == tmp_path / "model_1000.d3"


def test_a_broken_or_unfitting_model_of_d3rlpy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.d3").write_bytes(b"no pickle")
    spaces = spaces_for(*CARTPOLE)
    with pytest.raises(BadInput, match="is not a d3rlpy model: UnpicklingError"):
        load_policy(f"d3rlpy:{tmp_path / 'broken.d3'}", spaces)
    with pytest.raises(BadInput, match="There is no d3rlpy model"):
        load_policy(f"d3rlpy:{tmp_path / 'absent.d3'}", spaces)
    with pytest.raises(BadInput, match="holds no model_<step>"):
        load_policy(f"d3rlpy:{tmp_path}", spaces)
    algorithm = d3rlpy_algorithm(d3rlpy.algos.DQNConfig(encoder_factory=ENCODER), spaces_for("Acrobot-v1", {}))
    algorithm.save(str(tmp_path / "acrobot.d3"))
    with pytest.raises(BadInput, match=r"shape \(6,\) and has 3 action values; the environment has \(4,\) and 2"):
        load_policy(f"d3rlpy:{tmp_path / 'acrobot.d3'}", spaces)


def onnx_file(path: Path, output: str, integers: bool = False) -> Path:
    """A graph that multiplies observations (N, 4) by a matrix of 2 columns, or says which is greater."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    matrix = onnx.numpy_helper.from_array(np.float32([[1, 0], [0, 1], [0, 0], [0, 0]]), "matrix")
    nodes = [onnx.helper.make_node("MatMul", ["input", "matrix"], ["values" if integers else output])]
    kind, width = onnx.TensorProto.FLOAT, [None, 2]
    if integers:
        nodes.append(onnx.helper.make_node("ArgMax", ["values"], [output], axis=1, keepdims=0))
        kind, width = onnx.TensorProto.INT64, [None]
    source = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [None, 4])
    graph = onnx.helper.make_graph(
        nodes, "policy", [source], [onnx.helper.make_tensor_value_info(output, kind, width)], [matrix]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


ROWS = np.float32([[3, 1, 0, 0], [1, 4, 0, 0], [0, -5, 9, 9]])


@pytest.mark.parametrize(("output", "kind"), [("logits", "logits"), ("q_values", "q_values")])
def test_an_onnx_model_gives_logits_or_q_values_by_the_name_of_its_output(
    output: str, kind: str, tmp_path: Path
) -> None:
    policy = load_policy(f"onnx:{onnx_file(tmp_path / 'model.onnx', output)}", spaces_for(*CARTPOLE))
    acts = policy.act(ROWS)
    assert acts.actions.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(acts.outputs, ROWS[:, :2])
    assert policy.output_kind == kind
    assert policy.modes == (("greedy", "sampled") if kind == "logits" else ("greedy",))


def test_an_onnx_models_logits_are_sampled_by_their_probabilities(tmp_path: Path) -> None:
    policy = load_policy(f"onnx:{onnx_file(tmp_path / 'model.onnx', 'logits')}", spaces_for(*CARTPOLE))
    rows = np.tile(np.float32([np.log(3), 0, 0, 0]), (2000, 1))
    actions = policy.act(rows, mode="sampled", rngs=[acting_generator(seed) for seed in range(2000)]).actions
    assert actions.mean() == pytest.approx(0.25, abs=0.04)


def test_an_onnx_model_may_give_the_action_itself_or_a_mean(tmp_path: Path) -> None:
    whole = load_policy(f"onnx:{onnx_file(tmp_path / 'whole.onnx', 'action', integers=True)}", spaces_for(*CARTPOLE))
    assert whole.act(ROWS).actions.tolist() == [0, 1, 0]
    assert whole.output_kind is None
    observation, _ = spaces_for(*CARTPOLE)
    box = Space(kind="box", dtype="float32", size=2, low=(-1.0, -1.0), high=(2.0, 2.0))
    mean = load_policy(f"onnx:{onnx_file(tmp_path / 'mean.onnx', 'mean')}", Spaces(observation, box))
    np.testing.assert_array_equal(mean.act(ROWS).actions, np.float32([[2, 1], [1, 2], [0, -1]]))
    assert mean.output_kind == "mean"


def test_an_onnx_model_that_does_not_fit_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "model.onnx", "logits")
    with pytest.raises(BadInput, match="does not take observations of 6"):
        load_policy(f"onnx:{file}", spaces_for("Acrobot-v1", {}))
    observation, _ = spaces_for(*CARTPOLE)
    with pytest.raises(BadInput, match=r"returned shape \(1, 2\); \(1, 3\) is expected"):
        load_policy(f"onnx:{file}", Spaces(observation, Space(kind="discrete", dtype="int64", size=1, n=3)))
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BadInput, match="is not an ONNX model"):
        load_policy(f"onnx:{tmp_path / 'broken.onnx'}", spaces_for(*CARTPOLE))


OWN = """
import numpy as np

def lean(observations):
    return (observations[:, 2] > 0).astype(int)

def out_of_range(observations):
    return [7]

def make():
    return lean

class Coin:
    output_kind = "logits"
    modes = ("sampled",)

    def act(self, observations, *, mode, rngs):
        return np.array([rng.integers(2) for rng in rngs]), np.zeros((len(observations), 2), np.float32)

not_callable = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's in the current folder."""
    (tmp_path / "own_policies.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_policies", raising=False)
    return tmp_path / "own_policies.py"


def test_a_python_function_acts_and_a_function_without_parameters_makes_one(own_module: Path) -> None:
    rows = np.float32([[0, 0, 1, 0], [0, 0, -1, 0]])
    for name in ("lean", "make"):
        policy = load_policy(f"py:own_policies:{name}", spaces_for(*CARTPOLE))
        assert policy.act(rows).actions.tolist() == [1, 0]
        assert policy.modes == ("greedy",)


def test_a_python_class_may_sample_and_tell_its_outputs(own_module: Path) -> None:
    policy = load_policy("py:own_policies:Coin", spaces_for(*CARTPOLE))
    assert (policy.output_kind, policy.modes) == ("logits", ("sampled",))
    make = partial(make_environment, "CartPole-v1")
    one, other = (list(rollout(make, policy, range(6), mode="sampled", envs=envs)) for envs in (1, 4))
    assert [episode.actions.tolist() for episode in one] == [episode.actions.tolist() for episode in other]
    assert len({tuple(episode.actions.tolist()) for episode in one}) == 6


def test_a_python_policys_hash_follows_its_source_and_its_name(own_module: Path) -> None:
    spaces = spaces_for(*CARTPOLE)
    first = load_policy("py:own_policies:lean", spaces).sha256
    assert first != load_policy("py:own_policies:make", spaces).sha256
    own_module.write_text(OWN.replace("> 0", "> 0.5"))
    assert first != load_policy("py:own_policies:lean", spaces).sha256


def test_what_python_cannot_give_is_said(own_module: Path) -> None:
    spaces = spaces_for(*CARTPOLE)
    with pytest.raises(BadInput, match="'own_policies' has no 'absent'"):
        load_policy("py:own_policies:absent", spaces)
    with pytest.raises(BadInput, match="Module 'absent_module'"):
        load_policy("py:absent_module:f", spaces)
    with pytest.raises(BadInput, match="is not a function, class or object"):
        load_policy("py:own_policies:not_callable", spaces)
    with pytest.raises(BadInput, match="is not py:MODULE:CALLABLE"):
        load_policy("py:own_policies", spaces)
    with pytest.raises(BadInput, match="the environment takes 0"):
        load_policy("py:own_policies:out_of_range", spaces).act(ROWS)


def test_a_policy_folder_and_a_policy_of_the_store_act_alike(store: Store, tmp_path: Path) -> None:
    spaces = spaces_for(*CARTPOLE)
    network = small_network(spaces)
    folder = tmp_path / "policy"
    folder.mkdir()
    for name, content in network.to_files().items():
        (folder / name).write_bytes(content)
    save_policy(store, "baseline-1", network.to_files(), {"kind": "baseline", "env_id": "CartPole-v1"})
    by_path, by_id = load_policy(f"policy:{folder}", spaces), load_policy("policy:baseline", spaces, store)
    assert by_path.sha256 == by_id.sha256 == network.sha256
    np.testing.assert_array_equal(by_path.act(ROWS).outputs, by_id.act(ROWS).outputs)
    with pytest.raises(BadInput, match="observation space with size 4; the environment has 6"):
        load_policy("policy:baseline-1", spaces_for("Acrobot-v1", {}), store)
    with pytest.raises(BadInput, match="There is no policy 'other'"):
        load_policy("policy:other", spaces, store)
    (folder / "weights.npz").write_bytes(b"")
    with pytest.raises(DamagedStore):
        load_policy(f"policy:{folder}", spaces)


def test_a_spec_of_no_known_form_names_the_forms(tmp_path: Path) -> None:
    for spec in ("", "nonsense", "keras:model.h5", "d3rlpy:", "policy:", "random:1"):
        with pytest.raises(BadInput) as caught:
            load_policy(spec, spaces_for(*CARTPOLE))
        assert caught.value.problem == f"Unknown policy {spec!r}; allowed: {FORMS}."
    with pytest.raises(BadInput, match=f"Did you mean policy:{tmp_path}"):
        load_policy(str(tmp_path), spaces_for(*CARTPOLE))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.zip").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for spec, extra in (("sb3:PPO+trust", "sb3"), ("onnx", "onnx")):
        with pytest.raises(Prerequisite, match=rf"pip install 'trajnote\[{extra}\]'"):
            load_policy(f"{spec}:{tmp_path / 'model.zip'}", spaces_for(*CARTPOLE))


def test_chance_acts_by_chance_in_either_mode_and_q_values_cannot_be_sampled() -> None:
    spaces = spaces_for(*CARTPOLE)
    chance = load_policy("random", spaces)
    assert (check_mode(chance, "greedy"), check_mode(chance, "sampled")) == ("sampled", "sampled")
    network = small_network(spaces)
    assert check_mode(NetworkActor("policy:a", network), "sampled") == "sampled"
    q_values = MlpPolicy(*spaces, network.weights, network.biases, "tanh", "q_values")
    with pytest.raises(BadInput, match="q_values without a distribution"):
        check_mode(NetworkActor("policy:a", q_values), "sampled")


WAYS = """
import numpy as np

def one(observation):
    return int(observation[2] > 0)

def batch(observations):
    return (observations[:, 2] > 0).astype(int)

def many_with_a_list(observations):
    return [int(row[2] > 0) for row in observations]

def of_either(observation):
    return int(np.mean(observation[0]) > 0)

of_either_said = lambda observations: int(np.mean(observations[0]) > 0)
of_either_said.batched = True

class Acts:
    def act(self, observation):
        return observation[2] > 0

class Predicts:
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.int64(observation[2] > 0), None

    def reset(self):
        raise RuntimeError

class Unmade:
    def __init__(self):
        self.weights = np.load("absent.npy")

def raising(observation):
    return {}["up"]

def three(observation):
    return [0, 1, 0]

def nothing(observation):
    return None
"""


@pytest.fixture
def forms(own_module: Path) -> Path:
    own_module.write_text(WAYS)
    return own_module


@pytest.mark.filterwarnings("ignore:.*never called")
@pytest.mark.parametrize("name", ["one", "batch", "many_with_a_list", "Acts", "Predicts"])
def test_a_function_of_one_observation_and_one_of_a_batch_act_alike(forms: Path, name: str) -> None:
    rows = np.float32([[0, 0, 1, 0], [0, 0, -1, 0], [9, 9, 1, -9]])
    assert load_policy(f"py:own_policies:{name}", spaces_for(*CARTPOLE)).act(rows).actions.tolist() == [1, 0, 1]
    assert load_policy(f"py:{forms}:{name}", spaces_for(*CARTPOLE)).act(rows).actions.tolist() == [1, 0, 1]


def test_a_function_whose_two_forms_differ_has_to_say_which_it_is(forms: Path) -> None:
    rows = np.float32([[1, -9, -9, -9]])
    with pytest.raises(BadInput, match=r"returned 1 for one observation and 0 for a batch of it. .*batched = True"):
        load_policy("py:own_policies:of_either", spaces_for(*CARTPOLE)).act(rows)
    assert load_policy("py:own_policies:of_either_said", spaces_for(*CARTPOLE)).act(rows).actions.tolist() == [0]


def test_a_row_of_as_many_numbers_as_there_are_rows_is_not_taken_for_a_batch(tmp_path: Path) -> None:
    (tmp_path / "pushes.py").write_text("def push(observation):\n    return observation[1]\n")
    spaces = spaces_for("MountainCarContinuous-v0", {})
    actions = load_policy(f"py:{tmp_path / 'pushes.py'}:push", spaces).act(np.float32([[-0.5, 0.25]])).actions
    assert actions.tolist() == [[0.25]]


def test_a_reset_that_is_never_called_is_said(forms: Path) -> None:
    with pytest.warns(TrajnoteWarning, match="Predicts has a reset, which is never called"):
        load_policy("py:own_policies:Predicts", spaces_for(*CARTPOLE)).act(ROWS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raising", r"raised KeyError: 'up' \(own_policies.py:35\)"),
        ("Unmade", r"raised FileNotFoundError: .*'absent.npy' \(own_policies.py:32\)"),
        ("three", r"three \(own_policies.py:37\) returned \[0, 1, 0\]; 1 number\(s\) per observation are expected"),
        ("nothing", r"nothing \(own_policies.py:40\) returned None; 1 number"),
    ],
)
def test_what_a_python_policy_does_wrong_is_one_line_with_its_file_and_line(forms: Path, name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        load_policy(f"py:own_policies:{name}", spaces_for(*CARTPOLE)).act(ROWS)
