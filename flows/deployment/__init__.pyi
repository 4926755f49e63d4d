from .night import Night, as_plain, describe_night, run_night
from .prefect_flows import (
    PipelineConfig,
    collect_flow,
    improve_flow,
    label_flow,
    make_deployments,
    nightly_flow,
    pipeline_flow,
    rounds_flow,
    run_and_notify,
    serve_deployments,
)
from .settings import DeploymentConfig, read_deployment, read_settings, write_template

__all__ = [
    "DeploymentConfig",
    "Night",
    "PipelineConfig",
    "as_plain",
    "collect_flow",
    "describe_night",
    "improve_flow",
    "label_flow",
    "make_deployments",
    "nightly_flow",
    "pipeline_flow",
    "read_deployment",
    "read_settings",
    "rounds_flow",
    "run_and_notify",
    "run_night",
    "serve_deployments",
    "write_template",
]
