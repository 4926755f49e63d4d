"""`ablate`: suggestions, rewards and both, beside every arm, in one table."""

from __future__ import annotations

from typing import Annotated

import typer

from .improving import (
    AcceptOption,
    BaselineOption,
    DrawsOption,
    ExpertOption,
    FirstSeedOption,
    GateModeOption,
    MethodOption,
    ReportOption,
    RunOption,
    SeedOption,
    SelectOption,
)
from .options import DEFAULT_STORE, DatasetOption, JsonOption, StoreOption, TrustOption, WorkersOption
from .output import print_json, print_lines, print_table, progress_bars


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(ablate)


def ablate(
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunOption = None,
    baseline: BaselineOption = None,
    env: TrustOption = None,
    modes: Annotated[str, typer.Option("--modes", help="Which of A, R and RA, with commas.")] = "A,R,RA",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Training seeds, from --seed on.")] = 3,
    expert: ExpertOption = None,
    seed: SeedOption = 0,
    first_seed: FirstSeedOption = 1_000_000,
    select: SelectOption = None,
    accept: AcceptOption = None,
    report: ReportOption = 100,
    draws: DrawsOption = 2,
    gate_mode: GateModeOption = "greedy",
    gate: MethodOption = "racing",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refine with suggestions, with rewards and with both, beside all arms and over several training seeds."""
    from storage.datasets import resolve_dataset
    from storage.store import Store

    from ..refinement import AblateConfig, ablation_rows, ablation_sentences
    from ..refinement import ablate as compare
    from ..refinement import ablation_json as to_json
    from ..simulation import Named

    sizes = {"select": select, "accept": accept, "report": report, "placebo_draws": draws}
    judging = {"first_seed": first_seed, "mode": gate_mode, "method": gate} | sizes
    improve = {"refine": {"seed": seed}, "gate": judging, "workers": workers}
    chosen = {"modes": [mode.strip() for mode in modes.split(",") if mode.strip()], "seeds": seeds}
    config = AblateConfig.model_validate(chosen | {"improve": improve | {"random_states": True, "expert": expert}})
    opened = Store.open(store)
    dataset_id = resolve_dataset(opened, dataset)
    named = {"baseline": Named.of(baseline), "env_id": Named.of(env)}
    with progress_bars() as bars:
        found = compare(opened, dataset_id, config, run_ids=run, **named, report=bars)
    if as_json:
        print_json(to_json(found))
        return
    first = next(iter(found.outcomes.values()))
    print_table(
        f"{dataset_id}: {first.n_labels} labels, {seeds} training seeds; baseline: {first.baseline.origin}",
        ablation_rows(found),
    )
    print_lines(*ablation_sentences(found), f"ablation: {found.ablation_id}")
