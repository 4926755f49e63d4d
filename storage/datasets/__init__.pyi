from .checks import check_action_space, check_draft, check_episode, check_spaces, is_finite, require_finite
from .columns import ENOUGH_ROWS, StepArrays, choose_rows, cut_episodes
from .reader import (
    damaged_columns,
    episode_shifts,
    iterate_episodes,
    list_episodes,
    list_pools,
    read_episode,
    read_pool,
    read_steps,
)
from .registry import adopt_dataset, catalogued_episodes, find_finished, list_datasets, pick, resolve_dataset
from .shards import check_shard, read_manifest, read_shard, require_readable
from .writer import StepsWriter

__all__ = [
    "ENOUGH_ROWS",
    "StepArrays",
    "StepsWriter",
    "adopt_dataset",
    "catalogued_episodes",
    "check_action_space",
    "check_draft",
    "check_episode",
    "check_shard",
    "check_spaces",
    "choose_rows",
    "cut_episodes",
    "damaged_columns",
    "episode_shifts",
    "find_finished",
    "is_finite",
    "iterate_episodes",
    "list_datasets",
    "list_episodes",
    "list_pools",
    "pick",
    "read_episode",
    "read_manifest",
    "read_pool",
    "read_shard",
    "read_steps",
    "require_finite",
    "require_readable",
    "resolve_dataset",
]
