"""Agents of Stable-Baselines3 are read, not run: they act as their library says, with their statistics, or not."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from flows.policies import export_policy, load_policy, with_options
from flows.policies.torch_policies import find_normalisation
from flows.simulation import ForeignActor, Named, NetworkActor, Spaces, spaces_of
from refine.policies import sb3_files as files
from refine.policies.mlp import MlpPolicy
from refine.policies.sb3_models import use_one_thread
from refine.policies.vec_normalize import read_statistics
from refine.training.packing import as_logits
from storage.errors import BadInput
from storage.policies import save_policy
from storage.store import Store

sb3 = pytest.importorskip("stable_baselines3")
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402

use_one_thread()
OBSERVATIONS = 10_000
LOW, HIGH = np.float32([-2, -1, 0]), np.float32([2, 3, 1])


class Spot(gymnasium.Env[np.ndarray, Any]):
    """Observations of five scales; what is done in it does not matter."""

    observation_space = gym_spaces.Box(-np.inf, np.inf, (5,), np.float32)

    def __init__(self, continuous: bool = False) -> None:
        self.action_space = gym_spaces.Box(LOW, HIGH) if continuous else gym_spaces.Discrete(4)

    def _look(self) -> np.ndarray:
        return (self.np_random.normal(size=5) * [1, 10, 0.1, 20, 3] + [0, 5, 0, -20, 1]).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self._look(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self._look(), 0.0, False, False, {}


def find_algorithm(name: str) -> Any:
    if hasattr(sb3, name):
        return getattr(sb3, name)
    return getattr(pytest.importorskip("sb3_contrib"), name)


def enlarged(model: Any) -> Any:
    """With weights that make units saturate, so that a wrong activation or a wrong scale would be seen."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter += torch.from_numpy(rng.standard_normal(parameter.shape) / parameter.shape[-1] ** 0.5).float()
    return model


def make_model(name: str, *, continuous: bool, venv: Any = None, policy: str = "MlpPolicy", **arguments: Any) -> Any:
    on_policy = {"PPO": {"n_steps": 8, "batch_size": 8}, "TRPO": {"n_steps": 8, "batch_size": 8}, "A2C": {}, "ARS": {}}
    given = on_policy.get(name, {"buffer_size": 10}) | arguments
    environment = venv or Spot(continuous)
    return enlarged(find_algorithm(name)(policy, environment, seed=1, device="cpu", **given))


def seen(count: int = OBSERVATIONS) -> np.ndarray:
    rng = np.random.default_rng(7)
    return (rng.normal(size=(count, 5)) * [1, 10, 0.1, 20, 3] + [0, 5, 0, -20, 1]).astype(np.float32)


def spaces(continuous: bool) -> Spaces:
    return spaces_of(Spot(continuous))


def check_acts_alike(policy: Any, predict: Callable[[np.ndarray], np.ndarray], continuous: bool) -> None:
    observations = seen()
    actions, wanted = policy.act(observations).actions, predict(observations)
    if continuous:
        np.testing.assert_allclose(actions, wanted, atol=1e-4)  # of sums of hundreds in float32
        assert np.ptp(actions, axis=0).min() > 0.1
    else:
        np.testing.assert_array_equal(actions, wanted)
        assert len(np.unique(actions)) > 1


RELU = {"activation_fn": torch.nn.ReLU}
CASES: Mapping[str, tuple[str, bool, dict[str, Any]]] = {
    "PPO": ("PPO", False, {}),
    "PPO, continuous": ("PPO", True, {}),
    "PPO, separate": ("PPO", True, {"policy_kwargs": {"net_arch": {"pi": [16], "vf": [8, 8]}, **RELU}}),
    "PPO, linear": ("PPO", False, {"policy_kwargs": {"net_arch": []}}),
    "PPO, extractors apart": ("PPO", False, {"policy_kwargs": {"share_features_extractor": False}}),
    "PPO, gSDE": ("PPO", True, {"use_sde": True}),
    "A2C, gSDE, squashed": (
        "A2C",
        True,
        {"use_sde": True, "policy_kwargs": {"squash_output": True, "full_std": False}},
    ),
    "A2C": ("A2C", False, {"policy_kwargs": {"net_arch": [7, 6, 5]}}),
    "DQN": ("DQN", False, {}),
    "DQN, tanh": ("DQN", False, {"policy_kwargs": {"activation_fn": torch.nn.Tanh, "net_arch": [9]}}),
    "SAC": ("SAC", True, {}),
    "SAC, gSDE": ("SAC", True, {"use_sde": True, "policy_kwargs": {"net_arch": [8, 8]}}),
    "SAC, gSDE, wide": ("SAC", True, {"use_sde": True, "policy_kwargs": {"clip_mean": 0.5, "net_arch": [8]}}),
    "SAC, linear": ("SAC", True, {"policy_kwargs": {"net_arch": []}}),
    "TD3": ("TD3", True, {"policy_kwargs": {"net_arch": {"pi": [12], "qf": [8]}}}),
    "DDPG": ("DDPG", True, {}),
    "QRDQN": ("QRDQN", False, {"policy_kwargs": {"n_quantiles": 7}}),
    "TQC": ("TQC", True, {"policy_kwargs": {"net_arch": [8, 8]}}),
    "TQC, gSDE": ("TQC", True, {"use_sde": True}),
    "TRPO": ("TRPO", False, {}),
    "TRPO, continuous": ("TRPO", True, {}),
    "ARS": ("ARS", False, {}),
    "ARS, continuous": ("ARS", True, {}),
    "ARS, cut": ("ARS", True, {"policy_kwargs": {"squash_output": False, "net_arch": [6]}}),
    "ARS, linear": ("ARS", True, {"policy": "LinearPolicy"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_read_agent_acts_as_its_library_says_at_ten_thousand_observations(case: str, tmp_path: Path) -> None:
    name, continuous, arguments = CASES[case]
    model = make_model(name, continuous=continuous, **arguments)
    model.save(tmp_path / "model.zip")
    policy = load_policy(Named(f"sb3:{name}:{tmp_path / 'model.zip'}"), spaces(continuous))
    assert isinstance(policy, NetworkActor)
    check_acts_alike(policy, lambda rows: model.predict(rows, deterministic=True)[0], continuous)
    again = MlpPolicy.from_files(policy.network.to_files())
    assert again.sha256 == policy.sha256
    np.testing.assert_array_equal(again.act(seen(100)).actions, policy.act(seen(100)).actions)


@pytest.mark.parametrize("activation", ["ELU", "LeakyReLU", "GELU", "SiLU", "Sigmoid", "Softplus"])
def test_other_activations_of_torch_act_too_without_being_portable(activation: str, tmp_path: Path) -> None:
    kwargs = {"activation_fn": getattr(torch.nn, activation), "net_arch": [8]}
    model = make_model("PPO", continuous=True, policy_kwargs=kwargs)
    model.save(tmp_path / "model.zip")
    policy = load_policy(Named(f"sb3:PPO:{tmp_path / 'model.zip'}"), spaces(True))
    assert isinstance(policy, ForeignActor)
    assert policy.modes == ("greedy", "sampled")
    wanted, _ = model.predict(seen(200), deterministic=True)
    np.testing.assert_allclose(policy.act(seen(200)).actions, wanted, atol=2e-5)


def normalising(continuous: bool, **arguments: Any) -> VecNormalize:
    venv = VecNormalize(DummyVecEnv([lambda: Spot(continuous)]), **arguments)
    venv.seed(3)
    venv.reset()
    for _ in range(300):
        venv.step([venv.action_space.sample()])
    return venv


@pytest.mark.parametrize("name", ["PPO", "A2C", "DQN", "SAC"])
@pytest.mark.parametrize("place", ["model/vecnormalize.pkl", "vecnormalize.pkl", "vec_normalize.pkl"])
def test_a_normalised_agent_acts_as_behind_its_statistics(name: str, place: str, tmp_path: Path) -> None:
    continuous = name in ("A2C", "SAC")
    venv = normalising(continuous, clip_obs=1.5, epsilon=0.01)
    model = make_model(name, continuous=continuous, venv=venv)
    model.save(tmp_path / "model.zip")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    venv.save(tmp_path / place)
    policy = load_policy(Named(f"sb3:{name}:{tmp_path / 'model.zip'}"), spaces(continuous))
    check_acts_alike(policy, lambda rows: model.predict(venv.normalize_obs(rows), deterministic=True)[0], continuous)
    raw = load_policy(Named(f"sb3:{name}+no-normalisation:{tmp_path / 'model.zip'}"), spaces(continuous))
    check_acts_alike(raw, lambda rows: model.predict(rows, deterministic=True)[0], continuous)
    assert raw.sha256 != policy.sha256


def test_the_statistics_of_a_checkpoint_have_its_number(tmp_path: Path) -> None:
    venv = normalising(False)
    model = make_model("PPO", continuous=False, venv=venv)
    model.save(tmp_path / "rl_model_500_steps.zip")
    venv.save(str(tmp_path / "rl_model_vecnormalize_500_steps.pkl"))
    policy = load_policy(Named(f"sb3:PPO:{tmp_path / 'rl_model_500_steps'}"), spaces(False))
    check_acts_alike(policy, lambda rows: model.predict(venv.normalize_obs(rows), deterministic=True)[0], False)


def test_statistics_without_observations_leave_them_as_they_are(tmp_path: Path) -> None:
    normalising(False, norm_obs=False).save(str(tmp_path / "vecnormalize.pkl"))
    make_model("PPO", continuous=False).save(tmp_path / "model.zip")
    assert find_normalisation(tmp_path / "model.zip") is None


ZOO = "!!python/object/apply:collections.OrderedDict\n- - - n_envs\n    - 8\n  - - normalize\n    - {}\n"


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (ZOO.format("true"), True),
        (ZOO.format("false"), False),
        (ZOO.format("dict(norm_obs=True, norm_reward=False)"), True),
        (ZOO.format("\"{'norm_obs': False, 'norm_reward': True}\""), False),
        ("normalize: true\n", True),
        ("normalize: {norm_obs: false}\n", False),
        ("CartPole-v1:\n  normalize: True\n", True),
        ("n_envs: 8\n", False),
        ("", False),
    ],
)
def test_an_agent_that_was_normalised_is_refused_without_its_statistics(
    text: str, refused: bool, tmp_path: Path
) -> None:
    make_model("PPO", continuous=False).save(tmp_path / "model.zip")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.yml").write_text(text)
    spec = f"sb3:PPO:{tmp_path / 'model.zip'}"
    if refused:
        with pytest.raises(BadInput, match=r"were normalised, and there is no vecnormalize.pkl.*--no-normalisation"):
            load_policy(Named(spec), spaces(False))
        load_policy(Named(with_options(spec, trust=False, raw=True)), spaces(False))
    else:
        load_policy(Named(spec), spaces(False))


def test_a_hostile_settings_file_builds_nothing(tmp_path: Path) -> None:
    make_model("PPO", continuous=False).save(tmp_path / "model.zip")
    canary = tmp_path / "canary"
    (tmp_path / "config.yml").write_text(f"!!python/object/apply:os.mkdir ['{canary}']\n")
    load_policy(Named(f"sb3:PPO:{tmp_path / 'model.zip'}"), spaces(False))
    assert not canary.exists()
    (tmp_path / "config.yml").write_text("[" * 100_000)
    with pytest.raises(BadInput, match=r"config\.yml is not YAML"):
        load_policy(Named(f"sb3:PPO:{tmp_path / 'model.zip'}"), spaces(False))
    (tmp_path / "config.yml").write_text("a: [")
    with pytest.raises(BadInput, match=r"config\.yml is not YAML"):
        load_policy(Named(f"sb3:PPO:{tmp_path / 'model.zip'}"), spaces(False))


def test_statistics_of_other_observations_are_refused(tmp_path: Path) -> None:
    venv = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    venv.save(str(tmp_path / "vecnormalize.pkl"))
    make_model("PPO", continuous=False).save(tmp_path / "model.zip")
    with pytest.raises(BadInput, match="has statistics of 4 numbers; the policy takes 5"):
        load_policy(Named(f"sb3:PPO:{tmp_path / 'model.zip'}"), spaces(False))


class Bomb:
    """Unpickling it leaves a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def hostile_pickles(canary: Path) -> Mapping[str, bytes]:
    honest = pickle.dumps(normalising(False))
    return {
        "system": pickle.dumps(Bomb(canary)),
        "buried": honest.replace(b"obs_rms", b"old_rms", 1),
        "eval": b"cbuiltins\neval\n(S'1'\ntR.",
        "numpy's own": b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
        "a getter": b"cnumpy.core.multiarray\nscalar.__globals__\n.",
        "a huge memo": b"I1\nr\xff\xff\xff\xff.",
        "a huge text": b"\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
        "a huge array": b"\x96" + struct.pack("<Q", 1 << 40) + b"x.",
        "truncated": honest[: len(honest) // 2],
        "empty": b"",
        "no pickle": b"hello",
        "a number": pickle.dumps(3),
        "not finite": pickle.dumps(damaged(var=np.full(5, np.nan))),
        "of texts": pickle.dumps(damaged(mean=np.array(["a"] * 5))),
        "of objects": pickle.dumps(damaged(mean=np.array([Bomb(canary)] * 5, dtype=object))),
        "negative": pickle.dumps(damaged(var=np.full(5, -1.0))),
        "a tower of tuples": b"\x80\x02}" + b")" + b"\x85" * 3_000_000 + b"K\x01s.",
        "of other shapes": pickle.dumps(damaged(mean=np.zeros(4))),
    }


def damaged(**values: Any) -> VecNormalize:
    venv = normalising(False)
    for name, value in values.items():
        setattr(venv.obs_rms, name, value)
    return venv


HOSTILE = ("system", "buried", "eval", "numpy's own", "a getter", "a huge memo", "a huge text", "a huge array")
HOSTILE += ("truncated", "empty", "no pickle", "a number", "not finite", "of texts", "of objects", "negative")
HOSTILE += ("of other shapes", "a tower of tuples")


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_pickle_that_is_no_honest_statistics_is_refused_in_one_line_and_runs_nothing(
    kind: str, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "vecnormalize.pkl").write_bytes(hostile_pickles(canary)[kind])
    with pytest.raises(BadInput) as refused:
        read_statistics(tmp_path / "vecnormalize.pkl")
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_statistics_of_every_protocol_and_numpy_are_read(protocol: int, core: bytes, tmp_path: Path) -> None:
    venv = normalising(False)
    content = pickle.dumps(venv, protocol=protocol)
    if protocol < 4:  # where names are not counted
        content = content.replace(b"numpy._core", core)
    (tmp_path / "vecnormalize.pkl").write_bytes(content)
    found = read_statistics(tmp_path / "vecnormalize.pkl")
    assert found is not None
    np.testing.assert_array_equal(found.mean, venv.obs_rms.mean)
    np.testing.assert_array_equal(found.var, venv.obs_rms.var)
    assert (found.epsilon, found.limit) == (venv.epsilon, venv.clip_obs)


def rewrite(source: Path, target: Path, **members: bytes) -> Path:
    """A copy of a zip with other members."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.replace(".", "_"), old.read(name)))
    return target


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def hostile_zips(model: Path, canary: Path) -> Mapping[str, dict[str, bytes]]:
    with zipfile.ZipFile(model) as archive:
        data = json.loads(archive.read("data"))
        honest = archive.read("policy.pth")
    tensors = torch.load(io.BytesIO(honest), weights_only=True)
    bomb = base64.b64encode(pickle.dumps(Bomb(canary))).decode()
    elsewhere = {**data["policy_class"], "__module__": "my_project.policies"}
    views = {**tensors, "action_net.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}
    return {
        "a bomb of weights": {"policy_pth": saved({"a": Bomb(canary)})},
        "weights of texts": {"policy_pth": saved({"action_net.weight": "x"})},
        "a list of weights": {"policy_pth": saved([1, 2])},
        "no weights": {"policy_pth": saved({})},
        "truncated weights": {"policy_pth": honest[:-500]},
        "a bare pickle": {"policy_pth": pickle.dumps(Bomb(canary))},
        "complex weights": {"policy_pth": saved({**tensors, "action_net.bias": torch.zeros(4, dtype=torch.cfloat)})},
        "a view of one number": {"policy_pth": saved(views)},
        "weights that are not finite": {"policy_pth": saved({**tensors, "action_net.bias": torch.full((4,), np.nan)})},
        "another width": {"policy_pth": saved({**tensors, "action_net.bias": torch.zeros(9)})},
        "no JSON": {"data": b"{"},
        "deep JSON": {"data": b"[" * 100_000},
        "a list": {"data": b"[]"},
        "a foreign class": {"data": json.dumps({**data, "policy_class": elsewhere}).encode()},
        "no class": {"data": json.dumps({**data, "policy_class": bomb}).encode()},
        "an activation of no class": {"data": json.dumps({**data, "policy_kwargs": {"activation_fn": [1]}}).encode()},
        "actions of another kind": {"policy_pth": saved({"q_net.q_net.0.weight": torch.zeros(4, 5)})},
        "a bomb of zeros": {"policy_pth": bytes(200_000_000)},
    }


HOSTILE_ZIPS = ("a bomb of weights", "weights of texts", "a list of weights", "no weights", "truncated weights")
HOSTILE_ZIPS += ("a bare pickle", "complex weights", "a view of one number", "weights that are not finite", "no JSON")
HOSTILE_ZIPS += ("another width", "deep JSON", "a list", "a foreign class", "no class", "a bomb of zeros")
HOSTILE_ZIPS += ("an activation of no class", "actions of another kind")


@pytest.mark.parametrize("kind", HOSTILE_ZIPS)
def test_a_zip_that_is_no_honest_model_is_refused_in_one_line_and_runs_nothing(kind: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    make_model("PPO", continuous=False).save(tmp_path / "honest.zip")
    target = rewrite(
        tmp_path / "honest.zip", tmp_path / "model.zip", **hostile_zips(tmp_path / "honest.zip", canary)[kind]
    )
    with pytest.raises(BadInput) as refused:
        load_policy(Named(f"sb3:PPO:{target}"), spaces(False))
    assert "\n" not in str(refused.value)
    assert not canary.exists()


def test_the_pickled_fields_of_a_zip_are_not_loaded(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    model = make_model("PPO", continuous=False)
    model.save(tmp_path / "honest.zip")
    with zipfile.ZipFile(tmp_path / "honest.zip") as archive:
        data = json.loads(archive.read("data"))
    bomb = base64.b64encode(pickle.dumps(Bomb(canary))).decode()
    for value in data.values():
        if isinstance(value, dict) and ":serialized:" in value:
            value[":serialized:"] = bomb
    other = rewrite(tmp_path / "honest.zip", tmp_path / "model.zip", data=json.dumps(data).encode())
    policy = load_policy(Named(f"sb3:PPO:{other}"), spaces(False))
    check_acts_alike(policy, lambda rows: model.predict(rows, deterministic=True)[0], False)
    assert not canary.exists()
    with pytest.raises(BadInput):
        load_policy(Named(f"sb3:PPO+trust:{other}"), spaces(False))
    assert canary.exists()


class Doubling(sb3.common.torch_layers.FlattenExtractor):
    """An extractor without weights that changes what the network sees."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(observations)


def test_an_extractor_of_ones_own_is_refused_and_acts_when_it_is_trusted(tmp_path: Path) -> None:
    model = make_model("PPO", continuous=False, policy_kwargs={"features_extractor_class": Doubling})
    model.save(tmp_path / "model.zip")
    spec = f"sb3:PPO:{tmp_path / 'model.zip'}"
    with pytest.raises(BadInput, match=r"sees through a .*Doubling.*--trust, or sb3:PPO\+trust"):
        load_policy(Named(spec), spaces(False))
    policy = load_policy(Named(with_options(spec, trust=True, raw=False)), spaces(False))
    assert isinstance(policy, ForeignActor)
    wanted, _ = model.predict(seen(50), deterministic=True)
    np.testing.assert_array_equal(policy.act(seen(50)).actions, wanted)


def test_options_are_for_agents_of_this_library_alone() -> None:
    assert with_options("random", trust=False, raw=False) == "random"
    assert with_options("sb3:PPO:a:b.zip", trust=True, raw=True) == "sb3:PPO+trust+no-normalisation:a:b.zip"
    with pytest.raises(BadInput, match="are for policies named sb3"):
        with_options("random", trust=True, raw=False)


def kept(store: Store, network: MlpPolicy) -> str:
    save_policy(store, "refined-1", network.to_files(), {"kind": "refined", "env_id": "Spot-v0"})
    return "refined-1"


def refined(network: MlpPolicy, continuous: bool) -> MlpPolicy:
    """What a refinement leaves: the same layers with other numbers, and logits of Q values."""
    rng = np.random.default_rng(1)
    start = as_logits(network, seen()) if network.head == "q_values" else network
    weights = tuple(weight + 0.1 * rng.standard_normal(weight.shape) for weight in start.weights)
    return replace(start, weights=weights)


EXPORTED = (
    "PPO",
    "PPO, continuous",
    "A2C, gSDE, squashed",
    "DQN",
    "SAC",
    "SAC, gSDE",
    "TD3",
    "DDPG",
    "QRDQN",
    "TQC",
    "TRPO",
)
EXPORTED += ("TRPO", "ARS", "ARS, cut")


@pytest.mark.parametrize("case", EXPORTED)
def test_the_library_plays_an_exported_policy_and_trains_it_further(case: str, store: Store, tmp_path: Path) -> None:
    name, continuous, arguments = CASES[case]
    make_model(name, continuous=continuous, **arguments).save(tmp_path / "model.zip")
    begun = load_policy(Named(f"sb3:{name}:{tmp_path / 'model.zip'}"), spaces(continuous))
    network = refined(getattr(begun, "network"), continuous)  # noqa: B009
    policy_id = kept(store, network)
    written = export_policy(store, policy_id, tmp_path / "out.zip", format="sb3", like=tmp_path / "model.zip")
    assert written.agreement is not None
    assert written.agreement.observations == OBSERVATIONS
    model = find_algorithm(name).load(tmp_path / "out.zip", env=Spot(continuous), device="cpu")
    check_acts_alike(network, lambda rows: model.predict(rows, deterministic=True)[0], continuous)
    if network.log_std is not None:
        np.testing.assert_array_equal(model.policy.log_std.detach().numpy(), network.log_std)
    if name in ("PPO", "DQN", "TD3"):
        model.learn(40)
    again = load_policy(Named(f"sb3:{name}:{tmp_path / 'out.zip'}"), spaces(continuous))
    assert again.output_kind == begun.output_kind


def test_a_refined_dqn_stays_one_with_values_of_the_originals_size(store: Store, tmp_path: Path) -> None:
    model = make_model("DQN", continuous=False)
    model.save(tmp_path / "model.zip")
    begun = load_policy(Named(f"sb3:DQN:{tmp_path / 'model.zip'}"), spaces(False))
    network = as_logits(getattr(begun, "network"), seen())  # noqa: B009
    export_policy(store, kept(store, network), tmp_path / "out.zip", format="sb3", like=tmp_path / "model.zip")
    out = load_policy(Named(f"sb3:DQN:{tmp_path / 'out.zip'}"), spaces(False))
    ratio = out.act(seen()).outputs.std() / begun.act(seen()).outputs.std()
    assert ratio == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(out.act(seen()).outputs, begun.act(seen()).outputs, rtol=1e-3, atol=0.05)
    tensors = find_algorithm("DQN").load(tmp_path / "out.zip", device="cpu").policy.state_dict()
    torch.testing.assert_close(tensors["q_net.q_net.0.weight"], tensors["q_net_target.q_net.0.weight"])


def test_an_exported_policy_takes_its_statistics_along(store: Store, tmp_path: Path) -> None:
    venv = normalising(True, clip_obs=2.0)
    make_model("A2C", continuous=True, venv=venv).save(tmp_path / "model.zip")
    venv.save(str(tmp_path / "vecnormalize.pkl"))
    begun = load_policy(Named(f"sb3:A2C:{tmp_path / 'model.zip'}"), spaces(True))
    network = refined(getattr(begun, "network"), True)  # noqa: B009
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "elsewhere" / "out.zip"
    policy_id = kept(store, network)
    written = export_policy(store, policy_id, out, format="sb3", like=tmp_path / "model.zip")
    assert written.beside == tmp_path / "elsewhere" / "out_vecnormalize.pkl"
    model, beside = find_algorithm("A2C").load(out), VecNormalize.load(str(written.beside), venv.venv)
    check_acts_alike(network, lambda rows: model.predict(beside.normalize_obs(rows), deterministic=True)[0], True)
    again = load_policy(Named(f"sb3:A2C:{out}"), spaces(True))
    np.testing.assert_array_equal(again.act(seen(50)).actions, network.act(seen(50)).actions)
    normalising(True, clip_obs=3.0).save(str(tmp_path / "vecnormalize.pkl"))
    with pytest.raises(BadInput, match="normalises its observations differently"):
        export_policy(store, policy_id, tmp_path / "b.zip", format="sb3", like=tmp_path / "model.zip")
    assert not (tmp_path / "b.zip").exists()


def test_a_policy_goes_into_no_other_zip(store: Store, tmp_path: Path) -> None:
    make_model("PPO", continuous=False).save(tmp_path / "model.zip")
    make_model("PPO", continuous=False, policy_kwargs={"net_arch": [8]}).save(tmp_path / "narrow.zip")
    make_model("DQN", continuous=False, policy_kwargs={"net_arch": [64, 64], "activation_fn": torch.nn.Tanh}).save(
        tmp_path / "dqn.zip"
    )
    network = getattr(load_policy(Named(f"sb3:PPO:{tmp_path / 'model'}"), spaces(False)), "network")  # noqa: B009
    policy_id = kept(store, network)
    for like, problem in (("narrow", "The policy has tanh layers"), ("absent", "There is no file")):
        with pytest.raises(BadInput, match=problem):
            export_policy(store, policy_id, tmp_path / "out.zip", format="sb3", like=tmp_path / f"{like}.zip")
    with pytest.raises(BadInput, match="is the original itself"):
        export_policy(store, policy_id, tmp_path / "model.zip", format="sb3", like=tmp_path / "model.zip")
    with pytest.raises(BadInput, match="go together"):
        export_policy(store, policy_id, tmp_path / "out.zip", format="sb3")
    assert not (tmp_path / "out.zip").exists()


def test_a_state_dict_and_its_json_are_the_policy(store: Store, tmp_path: Path) -> None:
    venv = normalising(True)
    model = make_model("PPO", continuous=True, venv=venv)
    model.save(tmp_path / "model.zip")
    venv.save(str(tmp_path / "vecnormalize.pkl"))
    network = getattr(load_policy(Named(f"sb3:PPO:{tmp_path / 'model'}"), spaces(True)), "network")  # noqa: B009
    written = export_policy(store, kept(store, network), tmp_path / "out.pt", format="torch")
    tensors = torch.load(written.path, weights_only=True)
    plain = torch.nn.Sequential(
        torch.nn.Linear(5, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3)
    )
    plain.load_state_dict(tensors)
    said = json.loads((tmp_path / "out.json").read_text())
    inputs = (seen(50) - said["shift"]) / said["scale"]
    inputs = torch.tensor(np.clip(inputs, -said["input_limit"], said["input_limit"])).float()
    wanted = np.clip(plain(inputs).detach().numpy(), LOW, HIGH)
    np.testing.assert_allclose(network.act(seen(50)).actions, wanted, atol=1e-4)
    layers = [(tensors[f"{place}.weight"].numpy(), tensors[f"{place}.bias"].numpy()) for place in (0, 2, 4)]
    assert MlpPolicy.from_json(said, layers).sha256 == network.sha256


def test_spaces_of_the_old_gym_are_read_from_their_texts() -> None:
    _, action = spaces(True)
    old = {":type:": "<class 'gym.spaces.box.Box'>", "shape": [3], "low": "[-2. -1.  0.]", "high": "[2. 3. 1.]"}
    assert files.recorded_space(old, action) == action
    other = files.recorded_space({**old, "high": "[2. 3. 5.]"}, action)
    assert other.high == (2.0, 3.0, 5.0)
    discrete = {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", "n": "4", "start": "0"}
    assert files.recorded_space(discrete, action).n == 4


def test_a_folder_means_its_only_zip(tmp_path: Path) -> None:
    make_model("PPO", continuous=False).save(tmp_path / "agent" / "CartPole-v1.zip")
    load_policy(Named(f"sb3:PPO:{tmp_path / 'agent'}"), spaces(False))
    make_model("PPO", continuous=False).save(tmp_path / "agent" / "best_model.zip")
    with pytest.raises(BadInput, match=r"holds 2 zips \(CartPole-v1.zip, best_model.zip\)|holds 2 zips"):
        load_policy(Named(f"sb3:PPO:{tmp_path / 'agent'}"), spaces(False))
