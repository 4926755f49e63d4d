from .batch_config import BatchConfig
from .batches import GO_ON, Priced
from .budget import BudgetedCalls, hasty, refuse_over_budget
from .ledger import as_text
from .read_replies import digest
from .records import Note, RawReply, Run, StoredReply, Totals
from .recovery import enter_failure, enter_landed, leave_note, recover, settle

__all__ = [
    "GO_ON",
    "BatchConfig",
    "BudgetedCalls",
    "Note",
    "Priced",
    "RawReply",
    "Run",
    "StoredReply",
    "Totals",
    "as_text",
    "digest",
    "enter_failure",
    "enter_landed",
    "hasty",
    "leave_note",
    "recover",
    "refuse_over_budget",
    "settle",
]
