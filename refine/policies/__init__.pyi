from .mlp import Acts, Chance, Head, MlpPolicy, Mode, OutputKind, Past, draw_uniforms
from .onnx_export import Agreement, export_onnx
from .rule_lists import CompiledRules, RulePolicy, Said, States, read_policy
from .spaces import action_bounds, action_units, input_size, network_inputs, output_size

__all__ = [
    "Acts",
    "Agreement",
    "Chance",
    "CompiledRules",
    "Head",
    "MlpPolicy",
    "Mode",
    "OutputKind",
    "Past",
    "RulePolicy",
    "Said",
    "States",
    "action_bounds",
    "action_units",
    "draw_uniforms",
    "export_onnx",
    "input_size",
    "network_inputs",
    "output_size",
    "read_policy",
]
