"""Trains a baseline with Stable-Baselines3's PPO, and stops when it no longer improves.

`python -m flows.policies.train_baseline LunarLander-v3 --out baseline` writes a policy folder: `policy.json` and
`weights.npz`, which act without torch, and `training.json`, its log. It is not a tuned trainer: a
baseline that is stuck on its plateau is what annotation is for.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydantic import Field

from refine.policies import MlpPolicy, Mode
from storage.disk import write_whole
from storage.errors import BadInput, Prerequisite, TrajnoteError
from storage.schema import Frozen

from ..runtime import Report, silent
from ..simulation import (
    EnvironmentMaker,
    Named,
    Spaces,
    make_environment,
    package_versions,
    parse_env_kwargs,
    parse_json_object,
    returns_of,
    spaces_of,
)

EVALUATION_SEEDS = range(900_000, 1_000_000)  # reserved: no dataset or gate starts there by default
TRAINING_LOG = "training.json"
_ENVIRONMENTS = 8
_PPO: Mapping[str, Any] = {
    "n_steps": 256,
    "batch_size": 64,
    "n_epochs": 4,
    "gamma": 0.999,
    "gae_lambda": 0.98,
    "ent_coef": 0.01,
}


class TrainConfig(Frozen):
    """How to train a baseline, and when to stop."""

    env_id: Named = Field(description="Gymnasium id, or module:EnvId")
    env_kwargs: Mapping[str, Any] = Field(default_factory=dict, description="arguments of gymnasium.make")
    ppo: Mapping[str, Any] = Field(default_factory=dict, description="arguments of PPO beside the defaults here")
    timesteps: int = Field(default=400_000, ge=1, description="most steps")
    evaluate_every: int = Field(default=40_960, ge=1, description="steps between evaluations; 20 whole PPO rollouts")
    evaluation_episodes: int = Field(default=20, ge=1, le=1000, description="greedy and sampled ones, each")
    patience: int = Field(default=2, ge=0, description="evaluations without enough rise; 0 trains to `timesteps`")
    tolerance: float = Field(default=1 / 3, ge=0, description="enough rise, as a part of the whole rise before")
    seed: int = Field(default=0, ge=0, description="of the network, the exploration and the training environments")


class Evaluation(Frozen):
    """Returns of one checkpoint on the evaluation seeds."""

    timesteps: int
    greedy: float
    sampled: float


class Training(Frozen):
    """The log of a baseline's training; `training.json`."""

    config: TrainConfig
    evaluations: tuple[Evaluation, ...]
    stopped: str = Field(description="why it stopped, in words")
    policy_sha256: str
    versions: Mapping[str, str]


def train_baseline(
    config: TrainConfig, out: Path, report: Report = silent, *, keep_zip: bool = False, checkpoints: bool = False
) -> Training:
    """Train PPO until its plateau and write it as a policy folder; the same configuration gives the same policy.

    A second call with an equal configuration reads what is there. The log is written last, so that a folder with a log
    is whole.

    Args:
        config: what to train and when to stop.
        out: folder of the policy; made if missing.
        report: called at every evaluation.
        keep_zip: also write `model.zip` of Stable-Baselines3, to be trained further with it.
        checkpoints: also write the policy of every evaluation, as `checkpoints/<timesteps>`, with what it returned.

    Raises:
        BadInput: when the environment is refused, PPO refuses an argument, or the folder holds another training.
        Prerequisite: when Stable-Baselines3 is not installed.
    """
    known = _read_log(out)
    if known is not None:
        if known.config != config:
            raise BadInput(f"{out} holds a policy that was trained differently.", "Name another folder with --out.")
        return known
    environment = make_environment(config.env_id, config.env_kwargs)
    spaces, versions = spaces_of(environment), package_versions(environment)
    environment.close()
    model = _make_model(config)
    evaluations: list[Evaluation] = []
    network, stopped = _to_network(model, spaces), f"the budget of {config.timesteps} steps is used up"
    for network in _train(model, config, spaces):
        evaluations.append(_evaluate(network, model.num_timesteps, config))
        last = evaluations[-1]
        line = f"{last.timesteps} steps: greedy {last.greedy:.4g}, sampled {last.sampled:.4g}"
        report(line, model.num_timesteps, config.timesteps)
        if checkpoints:
            _write_checkpoint(out, network, evaluations[-1], model if keep_zip else None)
        if is_plateau([evaluation.greedy for evaluation in evaluations], config.patience, config.tolerance):
            stopped = f"the greedy return rose too little over the last {config.patience} evaluations"
            break
    training = Training(
        config=config,
        evaluations=tuple(evaluations),
        stopped=stopped,
        policy_sha256=network.sha256,
        versions=versions | {name: importlib.metadata.version(name) for name in ("stable-baselines3", "torch")},
    )
    _write(out, network, training, model if keep_zip else None)
    return training


def is_plateau(returns: Sequence[float], patience: int, tolerance: float) -> bool:
    """Whether the last `patience` returns rose less than `tolerance` times the rise before them.

    With best(a..b) the highest return of evaluations a to b, the first being 1 and the last k: a plateau is
    `best(k-patience+1 .. k) - best(1 .. k-patience) < tolerance * (best(1 .. k-patience) - return(1))`. It needs more
    than `patience` evaluations. A return that only fell is a plateau; one that has not moved at all is not, since
    nothing was learned yet.
    """
    if patience == 0 or len(returns) <= patience:
        return False
    before, recent = max(returns[:-patience]), max(returns[-patience:])
    return recent - before < tolerance * (before - returns[0])


def _train(model: Any, config: TrainConfig, spaces: Spaces) -> Iterator[MlpPolicy]:
    """Train until the budget is used up, yielding the network before each evaluation."""
    while model.num_timesteps < config.timesteps:
        steps = min(config.evaluate_every, config.timesteps - model.num_timesteps)
        model.learn(steps, reset_num_timesteps=False)
        yield _to_network(model, spaces)


def _make_model(config: TrainConfig) -> Any:
    from refine.policies import use_one_thread

    use_one_thread()
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.vec_env import DummyVecEnv
    except ImportError as error:
        raise Prerequisite("Training needs Stable-Baselines3.", "pip install 'trajnote[sb3]'") from error
    make = EnvironmentMaker(config.env_id, config.env_kwargs)
    environments = DummyVecEnv([make] * _ENVIRONMENTS)
    try:
        return PPO("MlpPolicy", environments, seed=config.seed, device="cpu", **{**_PPO, **config.ppo})
    except (TypeError, ValueError, AssertionError) as error:
        raise BadInput(f"PPO refuses {json.dumps(dict(config.ppo))}: {error}.") from error


def _to_network(model: Any, spaces: Spaces) -> MlpPolicy:
    from refine.policies import from_sb3

    return from_sb3(model, *spaces)


def _evaluate(network: MlpPolicy, timesteps: int, config: TrainConfig) -> Evaluation:
    make = EnvironmentMaker(config.env_id, config.env_kwargs)
    seeds = EVALUATION_SEEDS[: config.evaluation_episodes]
    modes: tuple[Mode, ...] = ("greedy", "sampled")
    greedy, sampled = (float(np.mean(returns_of(make, network, seeds, mode=mode))) for mode in modes)
    return Evaluation(timesteps=timesteps, greedy=greedy, sampled=sampled)


def _write(out: Path, network: MlpPolicy, training: Training, model: Any | None) -> None:
    _write_network(out, network, model)
    write_whole(out / TRAINING_LOG, (training.model_dump_json(indent=2) + "\n").encode())


def _write_checkpoint(out: Path, network: MlpPolicy, evaluation: Evaluation, model: Any | None) -> None:
    folder = out / "checkpoints" / f"{evaluation.timesteps:09d}"
    _write_network(folder, network, model)
    write_whole(folder / "evaluation.json", (evaluation.model_dump_json() + "\n").encode())


def _write_network(folder: Path, network: MlpPolicy, model: Any | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in network.to_files().items():
        write_whole(folder / name, content)
    if model is not None:
        model.save(folder / "model.zip")


def _read_log(out: Path) -> Training | None:
    log = out / TRAINING_LOG
    return Training.model_validate_json(log.read_bytes()) if log.is_file() else None


def _main(
    env_id: Annotated[str, typer.Argument(help="Gymnasium id, or module:EnvId.")],
    out: Annotated[Path, typer.Option(help="Folder of the policy.")],
    env_kwargs: Annotated[str, typer.Option(help="JSON object of arguments of gymnasium.make.")] = "",
    ppo: Annotated[str, typer.Option(help="JSON object of arguments of PPO.")] = "",
    timesteps: Annotated[int, typer.Option(help="Stop after this many steps at the latest.")] = 400_000,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 40_960,
    patience: Annotated[int, typer.Option(help="Evaluations without enough rise; 0: use up the steps.")] = 2,
    tolerance: Annotated[float, typer.Option(help="Enough rise, as a part of the whole rise before.")] = 1 / 3,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    evaluation_episodes: Annotated[int, typer.Option(help="Greedy and sampled episodes per evaluation, each.")] = 20,
    keep_zip: Annotated[bool, typer.Option(help="Also write model.zip of Stable-Baselines3.")] = False,
    checkpoints: Annotated[bool, typer.Option(help="Also write the policy of every evaluation.")] = False,
) -> None:
    """Train PPO until it stops improving, and write it as a policy folder."""
    config = TrainConfig(
        env_id=Named(env_id),
        env_kwargs=parse_env_kwargs(env_kwargs),
        ppo=parse_json_object(ppo, "--ppo"),
        timesteps=timesteps,
        evaluate_every=evaluate_every,
        evaluation_episodes=evaluation_episodes,
        patience=patience,
        tolerance=tolerance,
        seed=seed,
    )
    tell: Report = lambda line, done, total: typer.echo(line)  # noqa: E731
    training = train_baseline(config, out, tell, keep_zip=keep_zip, checkpoints=checkpoints)
    typer.echo(f"{out}: {training.stopped}; policy {training.policy_sha256[:12]}")


if __name__ == "__main__":
    try:
        typer.run(_main)
    except TrajnoteError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
