from .batch_runs import Submission, run_batches, submit
from .ingestion import Ingested, Polled, ingest, poll
from .plan import RunPlan, RunSummary, estimate_run, plan_again, plan_run, unanswered_requests
from .reconcile import give_up
from .run import annotate_run

__all__ = [
    "Ingested",
    "Polled",
    "RunPlan",
    "RunSummary",
    "Submission",
    "annotate_run",
    "estimate_run",
    "give_up",
    "ingest",
    "plan_again",
    "plan_run",
    "poll",
    "run_batches",
    "submit",
    "unanswered_requests",
]
