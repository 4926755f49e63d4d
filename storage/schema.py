"""The values that all rooms share: spaces, episodes, manifests, annotations; and how they are written: JSON, ids, SQL.

They are written the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Array = NDArray[Any]
Engine = Literal["gymnasium", "envpool"]
RequestKind = Literal["mark", "identify", "suggest", "rules", "study"]
"""What a request asks for: labels in one stage, the first and the second of two stages, rules, or a study."""
SCHEMA_VERSION = 1
MAX_COMPONENTS = 131_072
"""Numbers of one observation; the pixels of an Atari screen are 100,800."""
MAX_VALUES = 1_000_000
"""Values of a discrete observation."""
MAX_ACTIONS = 10_000
"""Discrete actions, each of which has a name."""
MAX_DIMENSIONS = 256
"""Numbers of one action."""
MAX_NAME = 200
"""Characters in the name of a component or an action."""
_CHUNK = 1 << 20


class Frozen(BaseModel):
    """A value that is validated once, refuses unknown fields, and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Space(Frozen):
    """A flat observation or action space, as Gymnasium means it, without Gymnasium.

    A discrete space is stored as one int64 per step; a box as `size` numbers of `dtype`.
    """

    kind: Literal["box", "discrete"]
    dtype: str = Field(description="NumPy dtype of one component, for example float32 or int64")
    size: int = Field(ge=1, description="components of one value: the box's length, or 1 when discrete")
    n: int | None = Field(default=None, description="number of values when discrete")
    start: int = Field(default=0, description="smallest value when discrete")
    low: tuple[float, ...] | None = Field(default=None, description="lower bounds when box, (size,)")
    high: tuple[float, ...] | None = Field(default=None, description="upper bounds when box, (size,)")

    @property
    def is_discrete(self) -> bool:
        """Whether values are integers `start .. start + n - 1`."""
        return self.kind == "discrete"


class KnownEnvironment(NamedTuple):
    """An environment as it was when something was played in it."""

    environment_sha256: str
    versions: Mapping[str, str]  # package -> version
    code: Mapping[str, str]  # module or file -> sha256


@dataclass(frozen=True)
class Episode:
    """One episode of T steps; `observations` has T+1 rows, the last being the final one (Minari's semantics)."""

    episode_id: int
    seed: int | None
    observations: Array  # (T+1, n) in the environment's own dtype; (T+1,) int64 when discrete
    actions: Array  # (T,) int64 when discrete, else (T, m) in the environment's own dtype
    rewards: NDArray[np.float64]  # (T,)
    terminated: bool  # of the last step
    truncated: bool  # of the last step
    policy_outputs: NDArray[np.float32] | None = None  # (T, k): logits, or the mean of the action

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def return_(self) -> float:
        """Undiscounted sum of rewards."""
        return float(np.sum(self.rewards))


class Shard(Frozen):
    """One Parquet file of a dataset."""

    name: str
    sha256: str
    bytes: int
    rows: int
    first_episode: int
    last_episode: int


class Provenance(Frozen):
    """Where rows come from, beside their spaces; each field may be unknown."""

    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = Field(default_factory=dict)
    flattened_from: str | None = Field(
        default=None,
        exclude_if=lambda space: space is None,  # so that a manifest without it keeps its bytes
        description="Gymnasium's words for the observation space that was flattened; null when it was flat",
    )
    policy: str | None = Field(default=None, description="specification of the policy that acted")
    policy_sha256: str | None = None
    policy_file_sha256: str | None = Field(
        default=None,
        exclude_if=lambda sha256: sha256 is None,
        description="of the file or module that the specification names, where it holds code",
    )
    policy_mode: Literal["greedy", "sampled"] | None = None
    policy_output: Literal["logits", "q_values", "mean"] | None = None
    seed: int | None = Field(default=None, description="seed of the first episode; episode i has seed + i")
    max_steps: int | None = Field(default=None, description="cut of an episode's length beyond the environment's own")
    versions: Mapping[str, str] = Field(default_factory=dict)
    environment_code: Mapping[str, str] = Field(
        default_factory=dict,
        exclude_if=lambda code: not code,  # so that a manifest without it keeps its bytes
        description="sha256 of how the environment is registered, and of its modules that no version stands for",
    )


class ManifestDraft(Provenance):
    """What a dataset is going to be, known before its first episode is written."""

    schema_version: int = SCHEMA_VERSION
    dataset_id: str
    source: Literal["collect", "import"]
    env_id: str | None = Field(description="Gymnasium id; null when the rows came without an environment")
    engine: Engine = Field(
        default="gymnasium",
        exclude_if=lambda engine: engine == "gymnasium",  # so that a manifest without it keeps its bytes
        description="whose code the environment ran in; the physics of the other one may differ",
    )
    observation_space: Space
    action_space: Space
    component_names: tuple[str, ...] = Field(description="names of the observation's components, from the card")
    action_names: tuple[str, ...] = Field(description="names of the actions (discrete) or of their dimensions (box)")
    source_sha256: str | None = Field(default=None, description="hash of the rows when they were imported")


class Manifest(ManifestDraft):
    """What a dataset is and how it came to be; `rollouts/<dataset_id>/manifest.json`."""

    episodes: int
    steps: int
    shards: tuple[Shard, ...]
    card_file_sha256: str | None = Field(
        default=None,
        exclude_if=lambda sha256: sha256 is None,  # so that a manifest without it keeps its bytes
        description="of the card that the user named, which lies beside the shards",
    )
    created_at: str


@dataclass(frozen=True)
class Annotation:
    """One note in the margin: what one annotator said about one step."""

    annotation_id: str
    run_id: str
    request_id: str | None
    dataset_id: str
    episode_id: int
    step: int
    critical: bool
    suggested_action: tuple[float, ...] | None
    suggested_label: str | None
    implicit_reward: float | None  # in [-1, 1]
    confidence: float | None  # in [0, 1]
    rationale: str | None
    model: str
    prompt_version: str | None


@dataclass(frozen=True)
class Rejection:
    """Something an annotator said that breaks a rule, kept with its reason and its raw text."""

    rejection_id: str
    run_id: str
    request_id: str | None
    dataset_id: str
    episode_id: int | None
    step: int | None
    reason: str  # a short code, e.g. unknown_step
    detail: str
    raw: str


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, valid JSON even for infinite numbers.

    Infinity and NaN become the strings `"Infinity"`, `"-Infinity"` and `"NaN"`, which pydantic reads back as numbers.

    Args:
        value: a pydantic model, or mappings, lists, tuples, strings, numbers, booleans and None.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_id(prefix: str, value: Any, length: int = 16) -> str:
    """`prefix` followed by the first `length` hexadecimal digits of the sha256 of the canonical JSON of `value`."""
    return prefix + sha256_bytes(canonical_json(value).encode())[:length]


def sha256_bytes(content: bytes | memoryview) -> str:
    """The sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def sql_text(value: str) -> str:
    """A text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def sql_name(name: str) -> str:
    """The name of a column or table as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="python"))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _spell(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no canonical JSON: {value!r}")


def _spell(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
