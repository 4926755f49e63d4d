from .mlp import Acts, Chance, Head, MlpPolicy, Mode, OutputKind, Past, draw_uniforms, stand_abreast
from .onnx_export import Agreement, export_onnx
from .rule_lists import CompiledRules, RulePolicy, Said, States, read_policy
from .sb3_export import write_like, write_torch
from .sb3_files import SavedModel, find_statistics, read_model, said_shape, said_space, says_normalised
from .sb3_models import (
    Network,
    NotAnMlpError,
    find_layout,
    from_sb3,
    from_tensors,
    read_network,
    use_one_thread,
)
from .spaces import action_bounds, action_units, input_size, network_inputs, output_size
from .state_dicts import ACTIVATIONS, HEADS, read_plain_network, read_state
from .vec_normalize import MAX_PICKLE_BYTES, Statistics, read_statistics

__all__ = [
    "ACTIVATIONS",
    "HEADS",
    "MAX_PICKLE_BYTES",
    "Acts",
    "Agreement",
    "Chance",
    "CompiledRules",
    "Head",
    "MlpPolicy",
    "Mode",
    "Network",
    "NotAnMlpError",
    "OutputKind",
    "Past",
    "RulePolicy",
    "Said",
    "SavedModel",
    "States",
    "Statistics",
    "action_bounds",
    "action_units",
    "draw_uniforms",
    "export_onnx",
    "find_layout",
    "find_statistics",
    "from_sb3",
    "from_tensors",
    "input_size",
    "network_inputs",
    "output_size",
    "read_model",
    "read_network",
    "read_plain_network",
    "read_policy",
    "read_state",
    "read_statistics",
    "said_shape",
    "said_space",
    "says_normalised",
    "stand_abreast",
    "use_one_thread",
    "write_like",
    "write_torch",
]
