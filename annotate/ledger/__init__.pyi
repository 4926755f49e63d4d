from .batch_config import BatchConfig
from .batches import GO_ON, Batch, Priced
from .budget import CallBook, hasty, refuse_over_budget
from .ledger import as_text, reopen_empty
from .read_replies import digest
from .records import BATCH, Landed, Note, RawReply, Run, Totals
from .recovery import enter_failure, enter_landed, leave_note, recover, settle

__all__ = [
    "BATCH",
    "GO_ON",
    "Batch",
    "BatchConfig",
    "CallBook",
    "Landed",
    "Note",
    "Priced",
    "RawReply",
    "Run",
    "Totals",
    "as_text",
    "digest",
    "enter_failure",
    "enter_landed",
    "hasty",
    "leave_note",
    "recover",
    "refuse_over_budget",
    "reopen_empty",
    "settle",
]
