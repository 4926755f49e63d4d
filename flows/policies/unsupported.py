"""Policies that no rollout here can run: those that remember, and those that see images. One clear line for each.

A policy is asked for one action per observation, from many episodes at once, and refined as a network of that
observation. One that carries a memory would be asked without it and act wrongly without an error, so it is refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from storage.disk import MAX_BYTES, decode_json
from storage.errors import BadInput

_RECURRENT_LAYERS = {"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"}  # of torch, told by their names


def refuse_unusable_sb3_file(spec: str, algorithm: str, file: Path | None) -> None:
    """Refuse a recurrent model before it is loaded, for its package may be missing.

    Args:
        spec: how the policy was named.
        algorithm: of the specification.
        file: the zip, if there is one.

    Raises:
        BadInput: when it is recurrent.
    """
    if "recurrent" in algorithm.lower():
        _refuse_memory(spec, algorithm)
    module = _module_of_policy(file) if file else ""
    if "recurrent" in module:
        _refuse_memory(spec, module)


def refuse_unusable_sb3_model(spec: str, model: Any) -> None:
    """Refuse a loaded model of Stable-Baselines3 that remembers or sees images.

    Raises:
        BadInput: when it does.
    """
    if hasattr(model.policy, "lstm_actor"):
        _refuse_memory(spec, type(model.policy).__name__)
    _refuse_image_shape(spec, getattr(model.observation_space, "shape", None))


def refuse_unusable_d3rlpy(spec: str, algorithm: Any) -> None:
    """Refuse a model of d3rlpy that acts on a history (decision transformers) or sees images.

    Raises:
        BadInput: when it does.
    """
    if hasattr(algorithm, "as_stateful_wrapper"):
        _refuse_memory(spec, type(algorithm).__name__)
    _refuse_image_shape(spec, algorithm.impl.observation_shape)


def refuse_unusable_onnx(spec: str, shapes: Sequence[Sequence[object]]) -> None:
    """Refuse an ONNX model by the shapes of its inputs.

    Args:
        spec: how the policy was named.
        shapes: of each input, a dimension that is not fixed being a name or None; an empty one is not known.

    Raises:
        BadInput: when it takes more than observations, or those are no rows of numbers.
    """
    if len(shapes) != 1:
        _refuse_memory(spec, f"its model has {len(shapes)} inputs, where one, the observations, is expected")
    if len(shapes[0]) > 2:
        _refuse_image_shape(spec, shapes[0][1:])


def refuse_unusable_python(spec: str, policy: Any) -> None:
    """Refuse an object of Python that is a torch network with recurrent layers, or holds one; others cannot be told.

    Raises:
        BadInput: when it is or does.
    """
    held = list(vars(policy).values()) if hasattr(policy, "__dict__") and not isinstance(policy, type) else []
    for network in [policy, *held]:
        modules = getattr(network, "modules", None)
        if not callable(modules) or not hasattr(network, "state_dict"):
            continue
        kinds: list[str] = [type(module).__name__ for module in modules()]  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
        for kind in kinds:
            if kind in _RECURRENT_LAYERS:
                _refuse_memory(spec, f"a {kind} layer")


def _module_of_policy(file: Path) -> str:
    """The module of the policy's class, as a zip of Stable-Baselines3 names it; empty if it does not."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open("data") as data:
            return str(decode_json(data.read(MAX_BYTES + 1))["policy_class"]["__module__"])
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, zipfile.BadZipFile):
        return ""  # loading it will say what is wrong


def _refuse_image_shape(spec: str, shape: Any) -> None:
    """Observations of a convolutional network have rows and columns; those of a perceptron are one row of numbers."""
    if shape is None or len(shape) < 2:
        return
    raise BadInput(
        f"{spec} sees images or sequences: its observations have shape {tuple(shape)}; one row of numbers is allowed.",
        "Use a policy of features, for example of a game's RAM.",
    )


def _refuse_memory(spec: str, why: str) -> NoReturn:
    raise BadInput(
        f"{spec} is recurrent ({why}): its action depends on more than the observation, so it cannot act here.",
        "Use a policy of the observation alone; stack observations where it needs the past.",
    )
