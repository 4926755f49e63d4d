"""`pipeline --rounds`: the rounds of a series, told as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import print_json, print_lines, print_table, progress_bars

if TYPE_CHECKING:
    from ..deployment import PipelineConfig
    from ..runtime import Server


def go_round(pipeline: PipelineConfig, rounds: int, server: Server | None, as_json: bool) -> None:
    """Run the rounds, tell them, and end with the exit code of what has to be done first where answers are missing.

    Raises:
        Prerequisite: if a round waits for answers.
    """
    from storage.errors import BadInput, Prerequisite

    from ..deployment import rounds_flow
    from ..refinement import RoundsConfig, rounds_rows, rounds_sentences
    from ..refinement import rounds_json as to_json
    from ..runtime import listening, served

    if pipeline.collect is None:
        raise BadInput("Rounds collect, each with another policy.")
    parts = {"collect": pipeline.collect, "label": pipeline.label, "improve": pipeline.improve}
    config = RoundsConfig.model_validate({"store": pipeline.store, "rounds": rounds, **parts})
    with progress_bars() as bars, listening(bars), served(server):
        series = rounds_flow(config)
    if as_json:
        print_json(to_json(series))
    else:
        print_table(f"{pipeline.collect.env_id}: {len(series.rounds)} of {rounds} rounds", rounds_rows(series))
        print_lines(*rounds_sentences(series))
    if series.waits:
        raise Prerequisite(f"{series.ended[0].upper()}{series.ended[1:]}.", "Run the same command when they are there.")
