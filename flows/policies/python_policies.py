"""Policies that the user wrote in Python: `py:MODULE:CALLABLE`, asked with one observation or with a batch.

Which of the two a function takes is tried once, with the first observations, and remembered.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from refine.policies import Mode
from storage.errors import BadInput, TrajnoteError, TrajnoteWarning
from storage.schema import Array, canonical_json

from ..simulation import (
    Answer,
    Foreign,
    ForeignActor,
    Named,
    Policy,
    Spaces,
    code_of,
    defined_at,
    describe_raised,
    import_module_here,
    legal_action,
)
from .external import refuse_memory

_RECURRENT_LAYERS = {"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"}  # of torch, recognised by their names
_CONTRACT = "docs/policies.md shows what a policy of Python takes and returns."


def open_py(spec: Named, spaces: Spaces) -> Policy:
    """Open `py:MODULE:CALLABLE`, where MODULE is a module's name or the path of a `.py` file.

    - A function of one observation, (n,), or a number when it is discrete, that returns one action.
    - A function of a batch of observations, (N, n), that returns N actions.
    - A class, or a function without parameters: called once, it gives such a function or an object with one of
      `act(observation)`, `predict(observation)`, or `act(observations, mode=, rngs=)`, which returns actions and
      outputs as `actors.Actor` does and may say what it is in `output_kind` and `modes`.

    Whatever it returns must depend on the observation (and the generators) alone: it is asked for many episodes at
    once, and its `reset`, if it has one, is never called. `batched = True` or `False`, as an attribute of the function
    or class, says which of the first two it is, in place of the trial.

    Raises:
        BadInput: when the module cannot be imported or has no such callable.
    """
    module, target = _find_target(spec)
    file = getattr(module, "__file__", None)
    source = Path(file).read_bytes() if file else module.__name__.encode()
    beside = {name: sha256 for name, sha256 in code_of(module).items() if name != module.__name__}
    decides = source + spec.encode() + (canonical_json(beside).encode() if beside else b"")
    if not callable(target) and not hasattr(target, "act") and not hasattr(target, "predict"):
        raise BadInput(f"{spec} is not a function, class or object with `act` or `predict`; it is {target!r}.")
    return ForeignActor(spec, hashlib.sha256(decides).hexdigest(), spaces, _ask_py)


def _ask_py(spec: str, spaces: Spaces) -> Foreign:
    asked = _instantiate(spec, _find_target(spec)[1])
    _refuse_recurrent(spec, asked)
    act = getattr(asked, "act", None) or getattr(asked, "predict", None) or asked
    if hasattr(asked, "reset") and act is not asked:
        warnings.warn(
            f"{spec} has a reset, which is never called: a policy acts by the observation alone", TrajnoteWarning, 2
        )
    place = f" ({defined_at(act)})" if defined_at(act) else ""
    if not _takes_mode(act):
        batched = getattr(asked, "batched", getattr(act, "batched", None))
        return Foreign(_Asked(spec + place, spaces, act, batched), place=place)

    def respond(observation: Array, mode: Mode, rng: np.random.Generator | None) -> Answer:
        answer = _call(spec, lambda: act(observation, mode=mode, rngs=[rng] if rng else None))
        try:
            return Answer(*answer)
        except TypeError as error:
            raise BadInput(f"{spec} returned {_brief(answer)}; actions and outputs are expected.", _CONTRACT) from error

    modes: tuple[Mode, ...] = tuple(getattr(asked, "modes", ("greedy", "sampled")))
    return Foreign(respond, getattr(asked, "output_kind", None), modes, place)


class _Asked:
    """A function that takes either one observation or a batch.

    Args:
        spec: how it was named.
        spaces: of the environment.
        function: the user's.
        batched: whether it takes a batch; found out with the first observation when None.
    """

    def __init__(self, spec: str, spaces: Spaces, function: Callable[[Any], Any], batched: bool | None) -> None:
        self._spec, self._spaces, self._function, self._batched = spec, spaces, function, batched

    def __call__(self, observation: Array, mode: Mode, rng: np.random.Generator | None) -> Answer:
        """Ask about one observation, (1, n), or (1,) when discrete."""
        if self._batched is None:
            self._batched = self._try(observation)
        return Answer(self._ask(observation, self._batched))

    def _ask(self, observation: Array, batched: bool) -> Any:
        given = observation.copy() if batched else observation[0].copy()
        answer = _call(self._spec, lambda: self._function(given))
        # as `predict` of other libraries
        has_state = isinstance(answer, tuple) and len(answer) == 2 and answer[1] is None
        return answer[0] if has_state else answer

    def _try(self, observation: Array) -> bool:
        """Whether it takes a batch.

        Raises:
            BadInput: when it gives an action for neither, or a different one for each.
        """
        if self._takes_more(observation):
            return True
        found: dict[bool, Array] = {}
        failed: dict[str, str] = {}
        for batched, form in ((False, "one observation"), (True, "a batch of one")):
            try:
                found[batched] = legal_action(self._ask(observation, batched), self._spaces.action, self._spec)
            except BadInput as error:
                failed[form] = error.problem.removeprefix(self._spec).strip(" .")
        if not found and len(set(failed.values())) == 1:
            raise BadInput(f"{self._spec} {failed.popitem()[1]}.", _CONTRACT)
        if not found:
            each = "; ".join(f"asked with {form}, it {text}" for form, text in failed.items())
            raise BadInput(f"{self._spec} gives no action: {each}.", _CONTRACT)
        if len(found) == 2 and not np.array_equal(found[False], found[True]):
            raise BadInput(
                f"{self._spec} returned {found[False][0]} for one observation and {found[True][0]} for a batch of it.",
                "Say which it takes with an attribute of the function or class, batched = True or False.",
            )
        return False not in found

    def _takes_more(self, observation: Array) -> bool:
        """Whether it gives as many legal actions as there are rows; their number is not that of the columns."""
        space, count = self._spaces.action, 3 if observation.shape[1:] == (2,) else 2
        shapes = [(count, space.size), *([(count,)] if space.size == 1 else [])]
        try:
            answers = np.asarray(self._ask(np.repeat(observation, count, axis=0), batched=True))
            return answers.shape in shapes and all(len(legal_action(each, space, self._spec)) for each in answers)
        except (TrajnoteError, TypeError, ValueError, RuntimeError):
            return False


def _call(spec: str, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except TrajnoteError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise BadInput(f"{spec} raised {describe_raised(error)}.") from error


def _takes_mode(act: Any) -> bool:
    """Whether it is the full form of an actor."""
    try:
        parameters = inspect.signature(act).parameters.values()
    except (TypeError, ValueError):
        return False
    names = {parameter.name for parameter in parameters}
    return {"mode", "rngs"} <= names or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _instantiate(spec: str, target: Any) -> Any:
    """A class and a function without parameters make the policy; anything else is the policy."""
    makes = inspect.isclass(target) or (inspect.isfunction(target) and not inspect.signature(target).parameters)
    return _call(spec, target) if makes else target


def _find_target(spec: str) -> tuple[ModuleType, Any]:
    module_name, _, name = spec.partition(":")[2].partition(":")
    if not module_name or not name:
        raise BadInput(f"{spec!r} is not py:MODULE:CALLABLE.", "For example py:my_policies:act.")
    module = import_module_here(module_name, f"policy {spec!r}")
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            raise BadInput(f"Module {module_name!r} has no {name!r}, which {spec!r} names.")
        target = getattr(target, part)
    return module, target


def _refuse_recurrent(spec: str, policy: Any) -> None:
    """Refuse an object that is a torch network with recurrent layers, or holds one; others are not seen.

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
                refuse_memory(spec, f"a {kind} layer")


def _brief(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."
