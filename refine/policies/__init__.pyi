from .mlp import Acts, Head, MlpPolicy, Mode, OutputKind
from .onnx_export import Agreement, export_onnx
from .rng import Chance, draw_uniforms
from .spaces import action_bounds, action_units, input_size, network_inputs, output_size

__all__ = [
    "Acts",
    "Agreement",
    "Chance",
    "Head",
    "MlpPolicy",
    "Mode",
    "OutputKind",
    "action_bounds",
    "action_units",
    "draw_uniforms",
    "export_onnx",
    "input_size",
    "network_inputs",
    "output_size",
]
