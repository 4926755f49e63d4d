from .checks import check_action_space, check_draft, check_episode, check_spaces, is_finite, require_finite
from .columns import StepArrays, cut_episodes
from .reader import damaged_columns, iterate_episodes, list_episodes, read_episode, read_steps
from .registry import adopt_dataset, catalogued_episodes, find_finished, list_datasets, pick, resolve_dataset
from .shards import check_shard, read_manifest, read_shard, require_readable
from .writer import StepsWriter

__all__ = [
    "StepArrays",
    "StepsWriter",
    "adopt_dataset",
    "catalogued_episodes",
    "check_action_space",
    "check_draft",
    "check_episode",
    "check_shard",
    "check_spaces",
    "cut_episodes",
    "damaged_columns",
    "find_finished",
    "is_finite",
    "iterate_episodes",
    "list_datasets",
    "list_episodes",
    "pick",
    "read_episode",
    "read_manifest",
    "read_shard",
    "read_steps",
    "require_finite",
    "require_readable",
    "resolve_dataset",
]
