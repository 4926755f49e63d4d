"""Policies of other libraries and of the user: opened, checked against the environment, made portable where exact.

A plain perceptron becomes a portable network and acts in NumPy. Anything else is called row by row and acts greedily,
unless it declares that it can be sampled. Files of d3rlpy are pickles: open only what you trust. Stable-Baselines3 is
opened in `torch_policies.py`.

A policy is asked for one action per observation, from many episodes at once. One that carries a memory would be asked
without it and act wrongly without an error, and one that sees images cannot be refined: both are refused.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np

from refine.policies import Head, MlpPolicy, Mode
from storage.disk import require_regular
from storage.errors import BadInput, Prerequisite
from storage.schema import Array, Space, sha256_file

from ..simulation import (
    Answer,
    Foreign,
    ForeignActor,
    Named,
    NetworkActor,
    Policy,
    Spaces,
)

TRUST, RAW = "trust", "no-normalisation"  # options of a policy of Stable-Baselines3


def find_zip(spec: str) -> Path:
    """The zip of `sb3:ALGO:PATH`: a file, with or without its suffix, or the only zip of a folder.

    Raises:
        BadInput: if there is none, or there are several.
    """
    name = spec.split(":", 2)[-1]
    folder = Path(name).expanduser()
    if not folder.is_dir() or folder.with_name(f"{folder.name}.zip").is_file():
        return find_file(name, spec, ".zip")
    found = sorted(folder.glob("*.zip"))
    if len(found) != 1:
        named = ", ".join(file.name for file in found[:5]) or "none"
        raise BadInput(f"{folder} holds {len(found)} zips ({named}); {spec!r} has to name one.")
    return found[0]


def open_d3rlpy(spec: Named, spaces: Spaces) -> Policy:
    """Open `d3rlpy:PATH`, a `.d3` file or a folder of d3rlpy's logger, whose newest model acts.

    Raises:
        BadInput: when there is no such model, it cannot be loaded, or was made for other spaces.
    """
    from refine.policies import NotAnMlpError, find_learnable, from_d3rlpy, load_learnable

    file = find_learnable(path_of(spec))
    algo = load_learnable(file)
    refuse_unusable_d3rlpy(spec, algo)
    inputs, outputs = tuple(algo.impl.observation_shape), int(algo.impl.action_size)
    if inputs != (spaces.observation.size,) or outputs != (spaces.action.n or spaces.action.size):
        raise BadInput(
            f"{spec} takes observations of shape {inputs} and has {outputs} action values; "
            f"the environment has {(spaces.observation.size,)} and {spaces.action.n or spaces.action.size}."
        )
    if (algo.get_action_type().name == "DISCRETE") != spaces.action.is_discrete:
        raise BadInput(f"{spec} is not for {spaces.action.kind} actions.")
    try:
        return NetworkActor(spec, from_d3rlpy(algo, *spaces))
    except NotAnMlpError:
        return ForeignActor(spec, sha256_file(file), spaces, _ask_d3rlpy)


def open_onnx(spec: Named, spaces: Spaces) -> Policy:
    """Open `onnx:PATH`.

    The first input takes observations (N, n) float32 (a discrete observation is n = 1). The first output decides: for
    discrete actions (N, k) floats are logits, or Q values if it is named `q_values`, and integers are the actions
    themselves; for continuous actions (N, m) floats are the mean, which is cut to the bounds.

    Raises:
        BadInput: when there is no such file, it cannot be loaded, or does not fit the spaces.
        Prerequisite: when onnxruntime is not installed.
    """
    file = find_file(spec.partition(":")[2], spec)
    actor = ForeignActor(spec, sha256_file(file), spaces, _ask_onnx)
    actor.act(probe(spaces))  # fails now if it does not fit
    return actor


def probe(spaces: Spaces) -> Array:
    """One observation, (1, n), or (1,) when discrete, to ask a policy for once."""
    shape = (1,) if spaces.observation.is_discrete else (1, spaces.observation.size)
    return np.full(shape, spaces.observation.start, spaces.observation.dtype)


def _ask_d3rlpy(spec: str, spaces: Spaces) -> Foreign:
    from refine.policies import find_learnable, load_learnable, use_one_thread

    use_one_thread()
    algo = load_learnable(find_learnable(path_of(spec)))

    def respond(observation: Array, mode: Mode, rng: np.random.Generator | None) -> Answer:
        chosen = algo.predict(observation.reshape(1, -1))
        return Answer(chosen + spaces.action.start if spaces.action.is_discrete else chosen)

    return Foreign(respond)


def _ask_onnx(spec: str, spaces: Spaces) -> Foreign:
    onnxruntime = find_extra("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path_of(spec), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime may raise any of its own types
        raise BadInput(f"{spec} is not an ONNX model: {error}.") from error
    refuse_unusable_onnx(spec, [given.shape for given in session.get_inputs()])
    source, target = session.get_inputs()[0].name, session.get_outputs()[0]

    def run(observation: Array) -> Array:
        try:
            return session.run([target.name], {source: observation.reshape(1, -1).astype(np.float32)})[0]
        except Exception as error:  # a wrong number of components, for example
            raise BadInput(f"{spec} does not take observations of {spaces.observation.size}: {error}.") from error

    if "int" in target.type and spaces.action.is_discrete:
        return Foreign(lambda observation, mode, rng: Answer(run(observation)))
    head: Head = "clip" if not spaces.action.is_discrete else "q_values" if target.name == "q_values" else "logits"
    decide = decision(head, spaces.action)

    def outputs_of(observation: Array) -> Array:
        outputs = run(observation)
        if outputs.shape != (1, decide.input_size):
            raise BadInput(f"{spec} returned shape {outputs.shape}; (1, {decide.input_size}) is expected.")
        return outputs

    return deciding(decide, outputs_of)


def deciding(decide: MlpPolicy, outputs_of: Callable[[Array], Array]) -> Foreign:
    """A policy whose network is elsewhere: what it does with the outputs, (1, k), for an observation."""

    def respond(observation: Array, mode: Mode, rng: np.random.Generator | None) -> Answer:
        acts = decide.act(outputs_of(observation), mode=mode, rngs=[rng] if rng else None)
        return Answer(acts.actions, acts.outputs)

    return Foreign(respond, decide.output_kind, ("greedy", "sampled") if decide.is_stochastic else ("greedy",))


def decision(head: Head, action_space: Space) -> MlpPolicy:
    """One identity layer under a head: what a portable policy would do with these outputs."""
    width = action_space.n or action_space.size
    outputs = Space(kind="box", dtype="float32", size=width)
    layer, bias = np.eye(width, dtype=np.float32), np.zeros(width, dtype=np.float32)
    return MlpPolicy(outputs, action_space, (layer,), (bias,), "relu", head)


def find_extra(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Raises:
        Prerequisite: when it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise Prerequisite(f"The package {module} is not installed.", f"pip install 'trajnote[{extra}]'")
    return importlib.import_module(module)


def path_of(spec: str) -> Path:
    """The path in a specification of the form `kind:PATH`."""
    return Path(spec.partition(":")[2]).expanduser()


def find_file(name: str, spec: str, suffix: str = "") -> Path:
    """The file of a name, with or without its suffix."""
    for candidate in (Path(name).expanduser(), Path(name + suffix).expanduser()):
        if candidate.is_file():
            return candidate
        if candidate.exists() and not candidate.is_dir():
            require_regular(candidate)
    raise BadInput(f"There is no file {name!r}, which {spec!r} names.")


def refuse_unusable_d3rlpy(spec: str, algorithm: Any) -> None:
    """Refuse a model of d3rlpy that acts on a history (decision transformers) or sees images.

    Raises:
        BadInput: when it does.
    """
    if hasattr(algorithm, "as_stateful_wrapper"):
        refuse_memory(spec, type(algorithm).__name__)
    refuse_image_shape(spec, algorithm.impl.observation_shape)


def refuse_unusable_onnx(spec: str, shapes: Sequence[Sequence[object]]) -> None:
    """Refuse an ONNX model by the shapes of its inputs.

    Args:
        spec: how the policy was named.
        shapes: of each input, a variable dimension is a name or None; an empty shape is unknown.

    Raises:
        BadInput: when it takes more than observations, or observations that are not rows of numbers.
    """
    if len(shapes) != 1:
        refuse_memory(spec, f"its model has {len(shapes)} inputs, where one, the observations, is expected")
    if len(shapes[0]) > 2:
        refuse_image_shape(spec, shapes[0][1:])


def refuse_image_shape(spec: str, shape: Any) -> None:
    """Observations of a convolutional network have rows and columns; those of a perceptron are one row of numbers.

    Raises:
        BadInput: for a shape of two dimensions or more.
    """
    if shape is None or len(shape) < 2:
        return
    raise BadInput(
        f"{spec} sees images or sequences: its observations have shape {tuple(shape)}; one row of numbers is allowed.",
        "Use a policy of features, for example of a game's RAM.",
    )


def refuse_memory(spec: str, why: str) -> NoReturn:
    """Refuse a policy that is asked for more than an observation.

    Raises:
        BadInput: always.
    """
    raise BadInput(
        f"{spec} is recurrent ({why}): its action depends on more than the observation, so it cannot act here.",
        "Use a policy of the observation alone; stack observations where it needs the past.",
    )
