"""Makes Gymnasium environments, describes their spaces, and refuses what does not fit, also of what they return.

Episodes are played in `rollouts.py`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, OrderEnforcing, TimeLimit

from storage.disk import parse_json, shorten
from storage.errors import BadInput, Prerequisite, did_you_mean
from storage.schema import MAX_ACTIONS, Array, Space, sha256_bytes

from .complaints import BrokenPromiseError, describe_raised
from .flattening import Flattened, describe_flattened, flatten_observations, is_image
from .trust import Named, find_module, first_strange

if TYPE_CHECKING:
    from refine.policies import Acts

Environment: TypeAlias = gymnasium.Env[Any, Any]
Step: TypeAlias = Callable[[Any], tuple[Any, Any, bool, bool, dict[str, Any]]]

ALLOWED = "a Discrete space or a flat Box, shape (n,)"
ALLOWED_OBSERVATIONS = "Discrete, Box, MultiDiscrete, MultiBinary, and Dict and Tuple of them, without images and texts"
OWN_ID = "Register a wrapped environment in a module of your own and name it as `module:EnvId`"
_OWN_HINT = (
    "One of your own is named `module:EnvId`, where importing the module registers it, or `module:Class`; the module "
    "may be a file, `path/to/file.py:Class`."
)
_OBSERVATION_HINT = (
    f"{OWN_ID}; gymnasium.wrappers.FilterObservation leaves parts of a Dict out, TransformObservation makes numbers of "
    "the rest, DtypeObservation gives them another type."
)
_RAM_HINT = 'Use the console\'s memory instead of its screen: --env-kwargs \'{"obs_type": "ram"}\'.'
_RESET = "its reset does not return an observation and info, as Gymnasium's does"

# module of a physics engine or emulator -> distributions that may provide it
_ENGINES = {"Box2D": ("box2d", "box2d-py"), "mujoco": ("mujoco",), "ale_py": ("ale-py",)}
_ROOMS = {"storage", "annotate", "refine", "flows"}
_KNOWN = {"builtins", "typing", "abc", "gymnasium", "flows", "trajnote", *_ENGINES}


_VERSIONED = re.compile(r"(.+)-v(\d{1,4})")
# fields of a space that a policy depends on; observations may leave their bounds
_DECISIVE = {"observation": ("kind", "size", "n"), "action": ("kind", "size", "n", "start", "low", "high")}


class Spaces(NamedTuple):
    """The observation and action space of an environment."""

    observation: Space
    action: Space


def check_spaces(spec: str, theirs: Spaces, ours: Spaces) -> None:
    """Refuse a policy that was made for another environment.

    Raises:
        BadInput: naming the first thing that differs.
    """
    for role, names in _DECISIVE.items():
        for name in names:
            have, want = (getattr(getattr(spaces, role), name) for spaces in (theirs, ours))
            if have != want:
                raise BadInput(f"{spec} was made for an {role} space with {name} {have}; the environment has {want}.")


def parse_env_kwargs(text: str | None) -> dict[str, Any]:
    """Read `--env-kwargs`, a JSON object of arguments of `gymnasium.make`; as `parse_json_object`."""
    return parse_json_object(text, "--env-kwargs")


def parse_json_object(text: str | None, option: str) -> dict[str, Any]:
    """Read an option that is a JSON object; None is an empty one.

    Raises:
        BadInput: when the text is not a JSON object.
    """
    if not text:
        return {}
    value = parse_json(text, option, f"Received {shorten(repr(text))}. {_object_hint(option)}")
    if not isinstance(value, dict):
        raise BadInput(f"{option} is not a JSON object: {shorten(repr(text))}.", _object_hint(option))
    return value


def make_environment(env_id: Named, env_kwargs: Mapping[str, Any] | None = None) -> Environment:
    """Make an environment with the wrappers that it was registered with; its observations are flattened if need be.

    Args:
        env_id: a registered id, `module:EnvId` where importing the module registers it, or `module:Class`; the module
            may be the path of a `.py` file. A plain text was not named by the user: nothing is imported for it, and
            only harmless arguments are accepted.
        env_kwargs: arguments of `gymnasium.make`; `max_episode_steps` is one of them.

    Raises:
        BadInput: for an unknown id (with near matches), a module that cannot be imported, or refused arguments.
        Prerequisite: when the environment needs a package that is not installed; the hint names the extra.
    """
    kwargs = dict(env_kwargs or {})
    _refuse_unnamed(env_id, kwargs)
    name = _registered_name(env_id)
    try:
        environment = gymnasium.make(name, **kwargs)
        return environment if is_row(environment.observation_space) else flatten_observations(environment)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise _of_yesterday(env_id, name) or _missing_package(name, error) from error
    except Exception as error:  # a third party's constructor may raise anything
        raise BadInput(
            f"{env_id} cannot be made with {json.dumps(kwargs, default=str)}: {describe_raised(error)}."
        ) from error


@dataclass
class EnvironmentMaker:
    """Makes environments of one kind to play side by side; arguments and errors as in `make_environment`.

    Gymnasium's passive checks run only in the first one: in the others they would repeat the warnings and cost time.
    """

    env_id: Named
    env_kwargs: Mapping[str, Any] | None = None
    _is_checked: bool = field(default=False, init=False)  # whether one was made that is

    def __call__(self) -> Environment:
        """Make the next one."""
        unchecked = {"disable_env_checker": True} if self._is_checked else {}
        environment = make_environment(self.env_id, {**unchecked, **(self.env_kwargs or {})})
        self._is_checked = True
        _quicken(environment.unwrapped)
        return environment


class _QuickDiscrete(spaces.Discrete):
    """Gymnasium's Discrete, which knows at once whether an int64 belongs to it; every step of its environments asks."""

    def contains(self, x: Any) -> bool:
        """As Gymnasium's, which takes longer over it than CartPole over half a step."""
        return bool(self.start <= x < self.start + self.n) if x.__class__ is np.int64 else super().contains(x)


def _quicken(environment: Environment) -> None:
    """Let an environment of Gymnasium itself check actions quickly; yours may care about the class of its space."""
    space = environment.action_space
    own = type(environment).__module__.startswith("gymnasium.envs.")
    if own and type(space) is spaces.Discrete and space.dtype == np.int64:
        space.__class__ = _QuickDiscrete


class BareStep(NamedTuple):
    """An environment's `step` without the wrappers that only count and check, and their step limit."""

    step: Step
    limit: int  # steps after which the episode is truncated, terminated or not


def bare_step(environment: Environment) -> BareStep:
    """Look below Gymnasium's TimeLimit and OrderEnforcing, if they are the outermost wrappers; any other one stays.

    For callers that reset before the first step and after the last, and keep the limit themselves.
    """
    limit = None
    if type(environment) is TimeLimit and environment.spec is not None:
        limit, environment = environment.spec.max_episode_steps, environment.env
    if type(environment) is OrderEnforcing:
        environment = environment.env
    return BareStep(environment.step, limit or sys.maxsize)


def spaces_of(environment: Environment) -> Spaces:
    """Describe the observation and the action space of an environment.

    Raises:
        BadInput: for any space that is not Discrete or a flat Box, naming it and what to do.
    """
    observation, action = environment.observation_space, environment.action_space
    hints = _observation_hint(environment), _action_hint(action)
    return Spaces(to_space(observation, "observation", hints[0]), to_space(action, "action", hints[1]))


def plain_observation(observation: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """An observation as its space promises it; wider floats are rounded to the type of the space.

    Raises:
        BrokenPromiseError: for another shape, no numbers, or a number that the space's type cannot hold.
    """
    if not shape and observation.__class__ in (int, np.int64):
        return observation
    try:
        values = np.asarray(observation)
    except ValueError as error:
        raise BrokenPromiseError("its observation is a list of lists of different lengths") from error
    if values.shape != shape or values.dtype.kind not in "fiub":
        given = f"{_short(observation)} of shape {values.shape}"
        raise BrokenPromiseError(f"its observation is {given}; its space promises numbers of shape {shape}")
    with np.errstate(all="ignore"):
        cast = values.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(cast, values):
        raise BrokenPromiseError(f"its observation {_short(values.tolist())} is not {dtype}, as its space promises")
    return cast


def describe_rounding(given: Any, plain: Any) -> str:
    """What `plain_observation` has changed, as a sentence; empty if nothing."""
    values, kept = np.asarray(given), np.asarray(plain)
    if values.dtype == kept.dtype or np.array_equal(values, kept):
        return ""
    return (
        f"the environment gives observations as {values.dtype}, but its space promises {kept.dtype}: the policy and "
        f"the dataset see them rounded to {kept.dtype}"
    )


def plain_reward(reward: Any) -> float:
    """A reward as a float.

    Raises:
        BrokenPromiseError: for None, an array, or anything else that is not a number.
    """
    if isinstance(reward, float | int | np.number | np.bool_) or (
        isinstance(reward, np.ndarray) and reward.shape == ()
    ):
        return float(reward)
    shape = f" of shape {reward.shape}" if isinstance(reward, np.ndarray) else ""
    instead = ", such as reward.item()" if isinstance(reward, np.ndarray) and reward.size == 1 else ""
    raise BrokenPromiseError(f"its reward is {_short(reward)}{shape}; a single number is needed{instead}")


def first_observation(result: Any) -> Any:
    """The observation of what `reset` returned.

    Raises:
        BrokenPromiseError: when it is not a pair of an observation and info.
    """
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise BrokenPromiseError(_RESET)
    return result[0]


def are_finite(values: Array) -> bool:
    """Whether all numbers are finite."""
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def not_finite(observation: Array, reward: Array, acts: Acts, row: int) -> tuple[int, str] | None:
    """What of one lane's step is not finite: 0 for the step itself, 1 for the next one, and a description."""
    for what, value, later in (
        ("the policy's action", acts.actions[row], 0),
        ("the policy's output", acts.outputs[row], 0),
        ("its reward", reward, 0),
        ("its observation", observation, 1),
    ):
        if not are_finite(np.asarray(value)):
            return later, f"{what} is not finite: {_short(np.asarray(value).tolist())}"
    return None


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def _observation_hint(environment: Environment) -> str:
    ale = "ale_py" in type(environment.unwrapped).__module__
    return _RAM_HINT if ale and is_image(environment.observation_space) else _OBSERVATION_HINT


def _action_hint(action: spaces.Space[Any]) -> str:
    """The wrapper that makes one Discrete or flat Box action of another space."""
    start = f"{OWN_ID}; gymnasium.wrappers.TransformAction"
    if isinstance(action, spaces.MultiDiscrete | spaces.MultiBinary):
        counts = tuple(int(n) for n in np.reshape(getattr(action, "nvec", np.full(action.shape, 2)), -1))
        many = int(np.prod(np.asarray(counts, dtype=np.float64)))
        if many <= MAX_ACTIONS:
            unravel = f"lambda i: np.array(np.unravel_index(i, {counts}))"
            return f"{start}(env, {unravel}, gymnasium.spaces.Discrete({many})) makes one action of each combination."
    if isinstance(action, spaces.Box):
        shape, size = action.shape, int(np.prod(action.shape))
        return f"{start}(env, lambda a: a.reshape({shape}), gymnasium.spaces.Box(low, high, ({size},))) makes it flat."
    return f"{start} can map one Discrete or Box action onto it."


def look_up_spaces(env_id: Named, env_kwargs: Mapping[str, Any] | None = None) -> Spaces:
    """The spaces of an environment, which is made and closed here.

    Raises:
        BadInput: as `make_environment` and `spaces_of` do.
        Prerequisite: as `make_environment` does.
    """
    environment = make_environment(env_id, env_kwargs)
    try:
        return spaces_of(environment)
    finally:
        environment.close()


def flattened_from(environment: Environment) -> Flattened | None:
    """How `make_environment` made the observations flat; None if they were, or if MiniGrid's own wrapper did it."""
    return describe_flattened(environment.env.observation_space) if type(environment) is FlattenObservation else None


def look_up_flattened(env_id: Named, env_kwargs: Mapping[str, Any] | None = None) -> Flattened | None:
    """How an environment's observations were made flat, as `flattened_from`; it is made and closed here."""
    environment = make_environment(env_id, env_kwargs)
    try:
        return flattened_from(environment)
    finally:
        environment.close()


def is_row(space: spaces.Space[Any]) -> bool:
    """Whether the values of a space are numbers or rows of numbers, so that there is nothing to flatten."""
    return isinstance(space, spaces.Discrete) or (isinstance(space, spaces.Box) and len(space.shape) == 1)


def to_space(space: spaces.Space[Any], role: str, hint: str = "") -> Space:
    """Describe one Gymnasium space, of observations that are flat.

    Args:
        space: the space of the environment.
        role: `observation` or `action`, for the message.
        hint: what to do when it is refused.

    Raises:
        BadInput: when it is neither Discrete nor a flat Box of numbers.
    """
    if isinstance(space, spaces.Discrete):
        return Space(kind="discrete", dtype="int64", size=1, n=int(space.n), start=int(space.start))
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and space.shape[0] > 0 and space.dtype.kind in "fiu":
        return Space(
            kind="box",
            dtype=str(space.dtype),
            size=space.shape[0],
            low=tuple(float(bound) for bound in space.low),
            high=tuple(float(bound) for bound in space.high),
        )
    allowed = ALLOWED if role == "action" else ALLOWED_OBSERVATIONS
    raise BadInput(f"The {role} space is {_brief(space)}; allowed: {allowed}.", hint)


def package_versions(environment: Environment) -> dict[str, str]:
    """Versions of what decides an episode's numbers: Python, NumPy, Gymnasium, the engine, the environment's package.

    An environment of another engine has its version as `engine_versions`. The result does not depend on what else this
    process has loaded.
    """
    names = ["numpy", "gymnasium"]
    for origin in {ancestor.__module__ for ancestor in type(environment.unwrapped).__mro__}:
        package = origin.partition(".")[0]
        members = vars(sys.modules[origin]) if origin in sys.modules else {}
        used = {package, *(name for name, value in members.items() if isinstance(value, ModuleType))}
        names += [distribution for engine in used & _ENGINES.keys() for distribution in _ENGINES[engine]]
        if package not in _KNOWN:
            names += distributions_of(package)
    versions = {name: version_of(name) for name in sorted(set(names))}
    there = {name: version for name, version in versions.items() if version}
    return {"python": platform.python_version(), **there, **getattr(environment.unwrapped, "engine_versions", {})}


@functools.lru_cache
def distributions_of(package: str) -> Sequence[str]:
    """The names of the distributions that provide an importable package."""
    return _distributions().get(package, [])


@functools.lru_cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def import_module_here(name: str, purpose: str) -> ModuleType:
    """Import the user's module, by name or as a file.

    Args:
        name: with dots, looked for in the current folder too, as `python -m` does; or the path of a `.py` file, beside
            which its own imports are looked for.
        purpose: what it is needed for, for the message.

    Raises:
        BadInput: when it does not exist or fails while it is imported.
    """
    is_file = name.endswith(".py")
    here = str(Path(name).expanduser().resolve().parent if is_file else Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return _import_file(name) if is_file else importlib.import_module(name)
    except Exception as error:  # the user's module may raise anything
        raise BadInput(
            f"Module {name!r} of {purpose} cannot be imported: {describe_raised(error)}.",
            _namesake_hint(error) or f"Searched: the Python path and {here}.",
        ) from error


def name_of_module(name: str) -> str:
    """The name under which `import_module_here` imports it: of a file its stem, unless that is another module's."""
    if not name.endswith(".py"):
        return name
    path = str(Path(name).expanduser().resolve())
    stem = Path(path).stem
    return stem if find_module(stem) in (None, path) else f"{stem}_{sha256_bytes(path.encode())[:8]}"


def _import_file(name: str) -> ModuleType:
    imported = name_of_module(name)
    if imported in sys.modules:
        return sys.modules[imported]
    spec = importlib.util.spec_from_file_location(imported, Path(name).expanduser().resolve())
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is not a file of Python")
    module = sys.modules[imported] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[imported]
        raise
    return module


def _namesake_hint(error: BaseException) -> str:
    """What to do when a name that the user's module imports is one of this project's packages in this process."""
    top = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if top not in _ROOMS:
        return ""
    return (
        f"The name {top!r} is trajnote's own in this process; put the folder of yours on PYTHONPATH, and start the "
        "command `trajnote` or `python -m trajnote`, which tells them apart."
    )


def _refuse_unnamed(env_id: str, kwargs: Mapping[str, Any]) -> None:
    """The last check, at run time too: names given by the user have their own type."""
    if not isinstance(env_id, Named) and (":" in env_id or first_strange(kwargs) is not None):
        raise BadInput(
            f"The environment {env_id!r} with {json.dumps(dict(kwargs), default=str)} was not named by the user; it is "
            "not loaded.",
            "If you trust it, name it with --env.",
        )


def _registered_name(env_id: str) -> str:
    module_name, _, name = env_id.rpartition(":")
    if module_name:
        module = import_module_here(module_name, f"environment {env_id!r}")
        if name not in gymnasium.registry and name.isidentifier() and callable(getattr(module, name, None)):
            return _register_class(module, name)
    if name not in gymnasium.registry:
        _register_atari(name)
    if name not in gymnasium.registry:
        raise _of_yesterday(env_id, name) or BadInput(f"Unknown environment {env_id!r}.{_near(name)}", _OWN_HINT)
    return name


def _register_class(module: ModuleType, name: str) -> str:
    """The id of a class that its module did not register, in a namespace of that module: other ids stay free."""
    own = f"{module.__name__.replace('.', '-')}/{name}"
    if own not in gymnasium.registry:
        gymnasium.register(own, entry_point=f"{module.__name__}:{name}")
    return own


def _of_yesterday(env_id: str, name: str) -> BadInput | None:
    """The refusal of an environment that is gone and has a newer version; that one is only named."""
    match = _VERSIONED.fullmatch(name)
    found = [other for known in gymnasium.registry if (other := _VERSIONED.fullmatch(known))] if match else []
    newer = [int(other[2]) for other in found if match and other[1] == match[1] and int(other[2]) > int(match[2])]
    if match is None or not newer:
        return None
    today = f"{env_id.removesuffix(name)}{match[1]}-v{max(newer)}"
    return BadInput(
        f"{env_id} no longer exists; the nearest current one is {today}, in which returns may differ.",
        f"To use that one, name it with --env {today}.",
    )


def _register_atari(name: str) -> None:
    """Register Atari's games by importing their package, if installed."""
    if importlib.util.find_spec("ale_py") is not None:
        ale = importlib.import_module("ale_py")
        ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)  # otherwise every game prints a banner
        gymnasium.register_envs(ale)
    elif name.startswith("ALE/"):
        raise Prerequisite(f"{name} needs the package ale-py.", "pip install 'trajnote[atari]'")


def _near(name: str) -> str:
    return did_you_mean(name, gymnasium.registry) or f" {len(gymnasium.registry)} are registered, none of them similar."


def _missing_package(name: str, error: Exception) -> Prerequisite:
    entry_point = str(gymnasium.registry[name].entry_point)
    bundled = entry_point.startswith("gymnasium.envs.")
    hint = "pip install 'trajnote[envs]'" if bundled else _namesake_hint(error) or "Install the package that it names."
    return Prerequisite(f"{name} needs a package that is not installed: {describe_raised(error)}.", hint)


def _object_hint(option: str) -> str:
    return f"For example {option} '{{\"continuous\": true}}'."


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _brief(space: spaces.Space[Any]) -> str:
    """A Box in one line, without its arrays of bounds."""
    if isinstance(space, spaces.Box):
        return f"Box of shape {space.shape} and dtype {np.dtype(space.dtype)}"
    return str(space)
