"""The recipe of mode A without d3rlpy: the same losses and batches, all betas at once, many times faster.

Which refinements are plain enough for it says `RefineConfig.is_plain`. The reference is `cloning.py` with `losses.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from storage.errors import BadInput
from storage.schema import Array

from .buffer import AnnotatedBuffer, Columns, Floats
from .config import RefineConfig
from .networks import as_policy, network_layers
from .policy import MlpPolicy
from .spaces import network_inputs
from .stacked import Adam, StackedNetworks, softmax


class FastCloning:
    """One training per beta from the same start on the same batches.

    Both terms of the loss are one: a distance `l(pi(s_i), t_i)` with a weight, where the target `t_i` is the suggestion
    at a labelled state and what the baseline does at any other. Discrete, `KL(pi_0 || pi)` and the cross-entropy to
    `pi_0` have the same gradient, `softmax(z) - t`; continuous, the squared error has `2 (mu - t) / m`.

    Args:
        start: where all trainings begin; with a head of logits when discrete.
        betas: weight of the distance to the start, one per training.
        learning_rate: of Adam.
    """

    def __init__(self, start: MlpPolicy, betas: Sequence[float], learning_rate: float) -> None:
        self._start = start
        self._betas = np.asarray(betas, np.float32)[:, None, None]
        self._networks = StackedNetworks([network_layers(start)] * len(betas), start.activation)
        self._adam = Adam(self._networks.parameters, self._networks.gradients, learning_rate)

    def step(self, batch: Columns) -> None:
        """One step of every training on one batch."""
        outputs = self._networks.forward(self._normalised(batch.observations))
        self._networks.backward(self._errors(outputs, batch) * self._weights(batch))
        self._adam.step()

    def policies(self) -> list[MlpPolicy]:
        """The policies so far, in the order of the betas."""
        copies = range(len(self._betas))
        return [as_policy(*self._networks.read(copy), self._start) for copy in copies]

    def diverged(self, observations: Array) -> bool:
        """Whether a parameter is not finite, or an output at some observations (n, N) that a network takes."""
        outputs = self._networks.forward(self._normalised(observations))
        return not (np.isfinite(self._networks.parameters).all() and np.isfinite(outputs).all())

    def _normalised(self, inputs: Array) -> Array:
        inputs = inputs if self._start.shift is None else inputs - self._start.shift[:, None]
        return inputs if self._start.scale is None else inputs / self._start.scale[:, None]

    def _weights(self, batch: Columns) -> Array:
        """(E, 1, B): each term is a mean over its rows; the distance to the start has the weight beta."""
        labelled, others = batch.labelled, 1 - batch.labelled
        suggestion = labelled * batch.weights / max(float(labelled.sum()), 1.0)
        return suggestion + self._betas * (others / max(float(others.sum()), 1.0))

    def _errors(self, outputs: Floats, batch: Columns) -> Array:
        """Slopes (E, k, B) of the distances to the targets, for outputs (E, k, B) of the last layer."""
        labelled = batch.labelled > 0
        if self._start.action_space.is_discrete:
            suggested = np.arange(outputs.shape[1])[:, None] == batch.suggestions
            return softmax(outputs) - np.where(labelled, suggested, softmax(batch.references))
        targets = np.where(labelled, batch.suggestions, batch.references)
        means = outputs if self._start.head == "clip" else np.tanh(outputs)
        errors = (means - targets) * np.float32(2 / outputs.shape[1])
        return errors if self._start.head == "clip" else errors * (1 - means * means)


def clone(
    buffer: AnnotatedBuffer, start: MlpPolicy, config: RefineConfig, probe: Array, tick: Callable[[], None]
) -> Iterator[tuple[int, list[MlpPolicy]]]:
    """Train from stop to stop, one training per beta.

    Args:
        buffer: seeded as the reference's.
        start: with a head of logits when discrete.
        config: completed.
        probe: (N, n) observations at which the outputs have to be finite.
        tick: called once per step of each training.

    Yields:
        The steps done, and the policies in the order of the betas.

    Raises:
        BadInput: for a training that diverged.
    """
    betas = config.betas or ()
    trainings = FastCloning(start, betas, config.learning_rate)
    done = 0
    for stop in config.snapshots or ():
        with threadpool_limits(1, "blas"), np.errstate(over="ignore", invalid="ignore"):
            for _ in range(done, stop):
                trainings.step(buffer.sample_columns(config.batch_size))
                for _ in betas:
                    tick()
            diverged = trainings.diverged(network_inputs(probe, start.observation_space).T)
        if diverged:
            raise BadInput(f"The training diverged before step {stop}.", "Choose a lower learning rate.")
        done = stop
        yield stop, trainings.policies()
