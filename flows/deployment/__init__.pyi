from .night import as_plain, describe_night
from .pipeline import PipelineConfig, pipeline_flow, rounds_flow
from .schedule import make_deployments, run_and_notify, serve_deployments
from .settings import read_deployment, read_settings, write_template

__all__ = [
    "PipelineConfig",
    "as_plain",
    "describe_night",
    "make_deployments",
    "pipeline_flow",
    "read_deployment",
    "read_settings",
    "rounds_flow",
    "run_and_notify",
    "serve_deployments",
    "write_template",
]
