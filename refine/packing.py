"""Transitions, labels and the baseline's opinion as one packed table. Sampling it is in `buffer.py`."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from storage.errors import BadInput
from storage.schema import Array, Space
from storage.steps import StepArrays

from .buffer import AnnotatedBuffer, Floats
from .door import ActionSpace, DatasetInfo, Signature
from .labels import Labels
from .policy import MlpPolicy
from .spaces import action_units, network_inputs, output_size

REFERENCE_ROWS = 65_536
"""Observations per call when the baseline's outputs are computed; bounds the memory of one call."""


def build_buffer(
    steps: StepArrays,
    labels: Labels,
    baseline: MlpPolicy,
    *,
    rewards: NDArray[np.float64] | None = None,
    suggestions: bool = True,
    quota: int = 64,
) -> AnnotatedBuffer:
    """Pack transitions and labels for d3rlpy.

    Every step is a transition, the last one of an episode included: its next observation is the final row. Only a
    termination ends the bootstrap; a truncated episode goes on from its final observation.

    Args:
        steps: N rows.
        labels: of these steps. With `suggestions`, those of weight 0 do not count; each of the others is a row.
        baseline: whose outputs are the references to stay close to.
        rewards: (N,) relabelled rewards, or None for the logged ones.
        suggestions: whether suggestions count; if not, labels only say which rows are annotated.
        quota: annotated rows per batch.

    Raises:
        BadInput: when no label counts.
    """
    used = labels.weights > 0 if suggestions else np.ones(len(labels), np.bool_)
    if not used.any():
        raise BadInput(
            f"None of the {len(labels)} labels has a suggestion with confidence above 0.",
            "Annotate more episodes, or refine from rewards only (mode R).",
        )
    is_plain = ~steps.is_final
    is_plain[labels.rows[used]] = False
    plain = np.flatnonzero(is_plain)
    rows = np.concatenate([plain, labels.rows[used]])
    blocks = {
        **_logged(steps, rows, rewards, baseline),
        **_notes(labels, used, suggestions, plain=len(plain), space=baseline.action_space),
        "references": _references(baseline, steps.observation[rows]),
    }
    table, columns = _pack(blocks)
    info = _describe(blocks, baseline.action_space)
    return AnnotatedBuffer(table, columns, annotated=int(used.sum()), quota=quota, info=info)


def _logged(
    steps: StepArrays, rows: NDArray[np.int64], rewards: NDArray[np.float64] | None, baseline: MlpPolicy
) -> dict[str, Array]:
    inputs = network_inputs(steps.observation, baseline.observation_space)
    actions = steps.action.reshape(len(steps), -1)
    if baseline.action_space.is_discrete:
        actions = np.maximum(actions - baseline.action_space.start, 0)  # a final row's 0 may lie below the start
    else:  # ReBRAC measures distances to next actions; after a truncation the baseline would have gone on
        actions = actions.copy()
        actions[steps.is_final] = baseline.act(steps.observation[steps.is_final]).actions
    return {
        "observations": inputs[rows],
        "actions": actions[rows],
        "rewards": (steps.reward if rewards is None else rewards)[rows, None],
        "next_observations": inputs[rows + 1],
        "next_actions": actions[rows + 1],
        "terminals": steps.terminated[rows, None],
    }


def _notes(labels: Labels, used: NDArray[np.bool_], counted: bool, *, plain: int, space: Space) -> dict[str, Array]:
    """Columns of zeros for the plain rows, then the labels; a suggestion that does not count has mask 0."""
    suggestions = _in_network_units(labels.suggestions[used].reshape(int(used.sum()), -1), space)
    weights = labels.weights[used, None]
    labelled = ((weights > 0) & counted).astype(np.float32)
    blocks = {
        "suggestions": suggestions,
        "weights": weights / max(float(weights[weights > 0].mean()), 1e-9) if (weights > 0).any() else weights,
        "labelled": labelled,
    }
    return {name: np.concatenate([np.zeros((plain, block.shape[1])), block]) for name, block in blocks.items()}


def _references(baseline: MlpPolicy, observations: Array) -> Array:
    chunks = range(0, len(observations), REFERENCE_ROWS)
    outputs = np.concatenate([baseline.forward(observations[start : start + REFERENCE_ROWS]) for start in chunks])
    return outputs if baseline.action_space.is_discrete else _in_network_units(outputs, baseline.action_space)


def _in_network_units(actions: Array, space: Space) -> Array:
    if space.is_discrete:
        return actions - space.start
    middle, half = action_units(space)
    return (actions - middle) / half


def _pack(blocks: dict[str, Array]) -> tuple[Floats, dict[str, slice]]:
    ends = np.cumsum([block.shape[1] for block in blocks.values()]).tolist()
    columns = {name: slice(end - block.shape[1], end) for (name, block), end in zip(blocks.items(), ends, strict=True)}
    table = np.empty((len(next(iter(blocks.values()))), ends[-1]), np.float32)
    for name, block in blocks.items():
        table[:, columns[name]] = block
    return table, columns


def _describe(blocks: dict[str, Array], space: Space) -> DatasetInfo:
    def signature(name: str) -> Signature:
        return Signature(dtype=[np.dtype(np.float32)], shape=[cast("tuple[int, ...]", blocks[name].shape[1:])])

    return DatasetInfo(
        observation_signature=signature("observations"),
        action_signature=signature("actions"),
        reward_signature=signature("rewards"),
        action_space=ActionSpace.DISCRETE if space.is_discrete else ActionSpace.CONTINUOUS,
        action_size=output_size(space),
    )
