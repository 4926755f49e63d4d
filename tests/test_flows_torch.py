"""Plain networks: a state_dict or a file of safetensors acts as torch computes it; what it cannot say is asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flows.policies import load_policy
from flows.simulation import ForeignActor, Named, NetworkActor, Spaces
from storage.errors import BadInput
from storage.schema import Space

torch.set_num_threads(1)
OBSERVATION = Space(kind="box", dtype="float32", size=5, low=(-np.inf,) * 5, high=(np.inf,) * 5)
DISCRETE = Spaces(OBSERVATION, Space(kind="discrete", dtype="int64", size=1, n=4))
BOX = Spaces(OBSERVATION, Space(kind="box", dtype="float32", size=2, low=(-2.0, 0.0), high=(2.0, 1.0)))


def seen(count: int = 10_000) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, 5)).astype(np.float32)


def stack(activation: type[nn.Module], *sizes: int) -> nn.Sequential:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def numbers(network: nn.Module, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(rows)).numpy()


class Actor(nn.Module):
    """As CleanRL writes the actor of TD3 and DDPG."""

    def __init__(self, last: str = "fc_mu") -> None:
        super().__init__()
        torch.manual_seed(2)
        self.fc1, self.fc2 = nn.Linear(5, 16), nn.Linear(16, 16)
        setattr(self, last, nn.Linear(16, 2))
        if last == "fc_mean":
            self.fc_logstd = nn.Linear(16, 2)
        self.last = last
        self.register_buffer("action_scale", torch.tensor([2.0, 0.5]))
        self.register_buffer("action_bias", torch.tensor([0.0, 0.5]))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = torch.relu(self.fc2(torch.relu(self.fc1(rows))))
        return torch.tanh(getattr(self, self.last)(rows)) * self.action_scale + self.action_bias


def opened(content: Any, path: Path, spaces: Spaces, options: str = "") -> Any:
    torch.save(content, path)
    return load_policy(Named(f"torch{options}:{path}"), spaces)


def test_cleanrls_agents_of_discrete_actions_act_as_torch_says(tmp_path: Path) -> None:
    agent = nn.ModuleDict({"critic": stack(nn.Tanh, 5, 8, 8, 1), "actor": stack(nn.Tanh, 5, 8, 8, 4)})
    policy = opened(agent.state_dict(), tmp_path / "ppo.cleanrl_model", DISCRETE)
    assert isinstance(policy, NetworkActor)
    assert policy.output_kind == "logits"
    np.testing.assert_array_equal(policy.act(seen()).actions, numbers(agent["actor"], seen()).argmax(axis=1))
    values = nn.ModuleDict({"network": stack(nn.ReLU, 5, 12, 8, 4)})
    policy = opened(values.state_dict(), tmp_path / "dqn.cleanrl_model", DISCRETE)
    assert policy.output_kind == "q_values"
    np.testing.assert_array_equal(policy.act(seen()).actions, numbers(values["network"], seen()).argmax(axis=1))


@pytest.mark.parametrize("last", ["fc_mu", "fc_mean"])
def test_cleanrls_squashed_actors_act_as_torch_says(last: str, tmp_path: Path) -> None:
    actor = Actor(last)
    content = (actor.state_dict(), nn.Linear(7, 1).state_dict())  # beside it the first of the critics
    policy = opened(content, tmp_path / "td3.cleanrl_model", BOX)
    np.testing.assert_allclose(policy.act(seen()).actions, numbers(actor, seen()), atol=1e-5)
    with torch.no_grad():
        actor.action_scale.mul_(2)
    with pytest.raises(BadInput, match="Its actions are"):
        opened(actor.state_dict(), tmp_path / "other.pt", BOX)


def test_cleanrls_continuous_ppo_is_refused_for_the_statistics_that_it_lacks(tmp_path: Path) -> None:
    agent = nn.ModuleDict({"critic": stack(nn.Tanh, 5, 8, 1), "actor_mean": stack(nn.Tanh, 5, 8, 2)})
    content = {**agent.state_dict(), "actor_logstd": torch.full((1, 2), -1.0)}
    with pytest.raises(BadInput, match=r"normalises observations by statistics that this file does not have"):
        opened(content, tmp_path / "ppo.pt", BOX)
    policy = opened(content, tmp_path / "ppo.pt", BOX, "+no-normalisation")
    wanted = np.clip(numbers(agent["actor_mean"], seen()), [-2, 0], [2, 1])
    np.testing.assert_allclose(policy.act(seen()).actions, wanted, atol=1e-5)
    assert policy.modes == ("greedy", "sampled")


def test_what_tensors_cannot_say_is_named_by_options(tmp_path: Path) -> None:
    network = stack(nn.ReLU, 5, 9, 4)
    with pytest.raises(BadInput, match=r"does not say its activation and head.*torch\+activation=A\+head=H:FILE"):
        opened(network.state_dict(), tmp_path / "own.pt", DISCRETE)
    policy = opened(network.state_dict(), tmp_path / "own.pt", DISCRETE, "+activation=relu+head=q_values")
    np.testing.assert_array_equal(policy.act(seen()).actions, numbers(network, seen()).argmax(axis=1))
    gelu = stack(nn.GELU, 5, 9, 4)
    policy = opened(gelu.state_dict(), tmp_path / "gelu.pt", DISCRETE, "+activation=gelu+head=logits")
    assert isinstance(policy, ForeignActor)
    np.testing.assert_array_equal(policy.act(seen(100)).actions, numbers(gelu, seen(100)).argmax(axis=1))
    with pytest.raises(BadInput, match=r"has the option 'head=nothing'; allowed: activation=tanh\|relu"):
        opened(gelu.state_dict(), tmp_path / "gelu.pt", DISCRETE, "+head=nothing")


def test_of_several_networks_in_a_checkpoint_the_one_that_fits_or_is_named_acts(tmp_path: Path) -> None:
    online, old = stack(nn.Tanh, 5, 9, 4), stack(nn.Tanh, 5, 7, 4)
    content = {"epoch": 3, "models": {"online": online.state_dict(), "old": old.state_dict()}}
    options = "+activation=tanh+head=logits"
    with pytest.raises(BadInput, match=r"2 networks in it take 5 numbers and give 4.*net=actor"):
        opened(content, tmp_path / "own.pt", DISCRETE, options)
    policy = opened(content, tmp_path / "own.pt", DISCRETE, f"{options}+net=models.old")
    np.testing.assert_array_equal(policy.act(seen()).actions, numbers(old, seen()).argmax(axis=1))
    with pytest.raises(BadInput, match=r"have the widths 5x9, 9x4; 5 to 2 are needed"):
        opened(content, tmp_path / "own.pt", BOX, "+activation=tanh+head=clipped+net=models.online")


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], **changes: Any) -> Path:
    header, numbers = {"__metadata__": {"format": "pt"}}, b""
    for name, array in tensors.items():
        end = len(numbers) + array.nbytes
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [len(numbers), end]} | changes
        numbers += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    return path


def test_a_file_of_safetensors_acts_as_its_state_dict(tmp_path: Path) -> None:
    network = stack(nn.Tanh, 5, 9, 4)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    file = write_safetensors(tmp_path / "own.safetensors", tensors)
    policy = load_policy(Named(f"torch+activation=tanh+head=logits:{file}"), DISCRETE)
    np.testing.assert_array_equal(policy.act(seen()).actions, numbers(network, seen()).argmax(axis=1))


HOSTILE: Mapping[str, dict[str, Any]] = {
    "a huge shape": {"shape": [1 << 40, 1 << 40]},
    "offsets beyond the file": {"data_offsets": [0, 1 << 50]},
    "negative offsets": {"data_offsets": [-8, 12]},
    "an unknown type": {"dtype": "OBJECT"},
    "no shape": {"shape": None},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_dishonest_header_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    file = write_safetensors(tmp_path / "own.safetensors", {"0.weight": np.zeros((4, 5), np.float32)}, **HOSTILE[kind])
    with pytest.raises(BadInput, match="is not a safetensors file") as refused:
        load_policy(Named(f"torch+head=logits:{file}"), DISCRETE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 40, (1 << 60).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"[]"]
)
def test_what_is_no_safetensors_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "own.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match="is not a safetensors file"):
        load_policy(Named(f"torch+head=logits:{tmp_path / 'own.safetensors'}"), DISCRETE)


class Bomb:
    """Unpickling it leaves a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def test_a_whole_module_and_a_bomb_are_refused_and_run_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for content in (Bomb(canary), {"0.weight": Bomb(canary)}, stack(nn.Tanh, 5, 4, 4), [], {}, 3, None):
        with pytest.raises(BadInput) as refused:
            opened(content, tmp_path / "own.pt", DISCRETE, "+activation=tanh+head=logits")
        assert "\n" not in str(refused.value)
    assert not canary.exists()
    convolution = {"0.weight": torch.zeros(4, 3, 2, 2), "2.weight": torch.zeros(4, 5)}
    with pytest.raises(BadInput, match=r"networks in it|other layers"):
        opened(convolution, tmp_path / "own.pt", DISCRETE, "+activation=tanh+head=logits")
    recurrent = nn.ModuleDict({"actor": nn.LSTM(5, 4)}).state_dict()
    with pytest.raises(BadInput):
        opened(recurrent, tmp_path / "own.pt", DISCRETE, "+activation=tanh+head=logits+net=actor")
