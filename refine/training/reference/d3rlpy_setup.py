"""The one door to d3rlpy: what this room uses of it, without its banner and its log lines.

Importing it takes seconds (torch, d3rlpy), so only the modules that learn import it.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

import structlog
from gym_notices.notices import notices

notices.clear()  # the legacy gym, which d3rlpy imports, prints one on its first import

# ruff: noqa: E402, F401
# pyright: reportUnusedImport=false
from d3rlpy.algos import (
    AWAC,
    BC,
    DQN,
    IQL,
    AWACConfig,
    BCConfig,
    DiscreteBC,
    DiscreteBCConfig,
    DiscreteCQL,
    DiscreteCQLConfig,
    DQNConfig,
    IQLConfig,
    QLearningAlgoBase,
    ReBRAC,
    ReBRACConfig,
    TD3PlusBC,
    TD3PlusBCConfig,
)
from d3rlpy.algos.qlearning.torch.awac_impl import AWACImpl
from d3rlpy.algos.qlearning.torch.bc_impl import BCImpl, BCModules, DiscreteBCImpl, DiscreteBCModules
from d3rlpy.algos.qlearning.torch.cql_impl import DiscreteCQLImpl, DiscreteCQLLoss
from d3rlpy.algos.qlearning.torch.dqn_impl import DQNImpl, DQNModules
from d3rlpy.algos.qlearning.torch.iql_impl import IQLImpl
from d3rlpy.algos.qlearning.torch.rebrac_impl import ReBRACImpl
from d3rlpy.algos.qlearning.torch.td3_plus_bc_impl import TD3PlusBCActorLoss, TD3PlusBCImpl
from d3rlpy.base import DeviceArg, LearnableConfig, load_learnable, register_learnable
from d3rlpy.constants import ActionSpace
from d3rlpy.dataclass_utils import asdict_as_float
from d3rlpy.dataset import (
    DatasetInfo,
    ReplayBufferBase,
    Signature,
    Transition,
    TransitionMiniBatch,
)
from d3rlpy.logging import (
    CombineAdapterFactory,
    FileAdapterFactory,
    LoggerAdapterFactory,
    NoopAdapterFactory,
    TensorboardAdapterFactory,
)
from d3rlpy.models import VectorEncoderFactory
from d3rlpy.models.builders import create_categorical_policy
from d3rlpy.models.encoders import EncoderFactory, make_encoder_field
from d3rlpy.models.torch import ActionOutput, CategoricalPolicy, ImitationLoss, Policy, build_gaussian_distribution
from d3rlpy.optimizers.optimizers import OptimizerFactory, OptimizerWrapper, make_optimizer_field
from d3rlpy.preprocessing import (
    MinMaxActionScaler,
    MultiplyRewardScaler,
    StandardObservationScaler,
    register_observation_scaler,
)
from d3rlpy.torch_utility import TorchMiniBatch
from d3rlpy.types import Shape, TorchObservation


@contextmanager
def quiet() -> Generator[None]:
    """Keep d3rlpy's log lines, which go to standard output, to errors; the former set-up returns afterwards."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield
    finally:
        structlog.configure(**before)
