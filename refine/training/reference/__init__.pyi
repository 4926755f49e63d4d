from .continuous_critic import AnnotatedTD3PlusBCConfig
from .d3rlpy_setup import quiet
from .discrete_critic import AnnotatedDiscreteCQLConfig
from .factory import create_algorithm, train_reference
from .networks import module_layers, read_weights, reproducible

__all__ = [
    "AnnotatedDiscreteCQLConfig",
    "AnnotatedTD3PlusBCConfig",
    "create_algorithm",
    "module_layers",
    "quiet",
    "read_weights",
    "reproducible",
    "train_reference",
]
