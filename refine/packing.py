"""Transitions, labels and the baseline's opinion as one packed table. Sampling it is in `buffer.py`."""

from __future__ import annotations

from itertools import accumulate

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

CHUNK = 8_192
"""Rows of the table that are written at a time; what is gathered for them stays in the processor's cache."""


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
    rows = np.concatenate([np.flatnonzero(is_plain), labels.rows[used]])
    now, following = _logged(steps, rewards, baseline)
    notes = _notes(labels, used, suggestions, space=baseline.action_space)
    widths = {name: block.shape[1] for blocks in (now, following, notes) for name, block in blocks.items()}
    columns = _lay_out({**widths, "references": output_size(baseline.action_space)})
    table = np.zeros((len(rows), columns["references"].stop), np.float32)
    _gather(table, columns, now, rows)
    _gather(table, columns, following, rows + 1)
    for name, block in notes.items():
        table[-len(block) :, columns[name]] = block  # a plain row has zeros
    for part in _chunks(rows):
        table[part, columns["references"]] = _references(baseline, steps.observation.take(rows[part], axis=0))
    info = _describe(columns, baseline.action_space)
    return AnnotatedBuffer(table, columns, annotated=int(used.sum()), quota=quota, info=info)


def _logged(
    steps: StepArrays, rewards: NDArray[np.float64] | None, baseline: MlpPolicy
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Columns (N, width) over all steps: those of a transition's own step, and those of the step after it."""
    inputs = network_inputs(steps.observation, baseline.observation_space)
    actions = steps.action.reshape(len(steps), -1)
    if baseline.action_space.is_discrete:
        actions = np.maximum(actions - baseline.action_space.start, 0)  # a final row's 0 may lie below the start
    else:  # ReBRAC measures distances to next actions; after a truncation the baseline would have gone on
        actions = actions.copy()
        actions[steps.is_final] = baseline.act(steps.observation[steps.is_final]).actions
    now = {
        "observations": inputs,
        "actions": actions,
        "rewards": (steps.reward if rewards is None else rewards)[:, None],
        "terminals": steps.terminated[:, None],
    }
    return now, {"next_observations": inputs, "next_actions": actions}


def _notes(labels: Labels, used: NDArray[np.bool_], counted: bool, *, space: Space) -> dict[str, Array]:
    """Columns of the annotated rows; a suggestion that does not count has mask 0."""
    weights = labels.weights[used, None]
    return {
        "suggestions": _in_network_units(labels.suggestions[used].reshape(int(used.sum()), -1), space),
        "weights": weights / max(float(weights[weights > 0].mean()), 1e-9) if (weights > 0).any() else weights,
        "labelled": (weights > 0) & counted,
    }


def _references(baseline: MlpPolicy, observations: Array) -> Array:
    outputs = baseline.forward(observations)
    return outputs if baseline.action_space.is_discrete else _in_network_units(outputs, baseline.action_space)


def _in_network_units(actions: Array, space: Space) -> Array:
    if space.is_discrete:
        return actions - space.start
    middle, half = action_units(space)
    return (actions - middle) / half


def _lay_out(widths: dict[str, int]) -> dict[str, slice]:
    """Where each block's columns are in the table, one block after the other."""
    ends = accumulate(widths.values())
    return {name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)}


def _gather(table: Floats, columns: dict[str, slice], blocks: dict[str, Array], rows: NDArray[np.int64]) -> None:
    """Copy the given rows of each block to its columns of the table."""
    for part in _chunks(rows):
        for name, block in blocks.items():
            table[part, columns[name]] = block.take(rows[part], axis=0)


def _chunks(rows: NDArray[np.int64]) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, len(rows), CHUNK)]


def _describe(columns: dict[str, slice], space: Space) -> DatasetInfo:
    def signature(name: str) -> Signature:
        return Signature(dtype=[np.dtype(np.float32)], shape=[(columns[name].stop - columns[name].start,)])

    return DatasetInfo(
        observation_signature=signature("observations"),
        action_signature=signature("actions"),
        reward_signature=signature("rewards"),
        action_space=ActionSpace.DISCRETE if space.is_discrete else ActionSpace.CONTINUOUS,
        action_size=output_size(space),
    )
