from .prefect_server import Server, quieten_prefect, served, start_server
from .processes import (
    PROCESSES,
    Report,
    are_waiting,
    chosen_runner,
    core_count,
    listener,
    listening,
    parallel_map,
    parse_runner,
    running_on,
    silent,
    workers_if_chosen,
)

__all__ = [
    "PROCESSES",
    "Report",
    "Server",
    "are_waiting",
    "chosen_runner",
    "core_count",
    "listener",
    "listening",
    "parallel_map",
    "parse_runner",
    "quieten_prefect",
    "running_on",
    "served",
    "silent",
    "start_server",
    "workers_if_chosen",
]
