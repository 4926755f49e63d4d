from .cells import Columns, parse_columns
from .episode_ends import add_final_observation
from .hdf5 import check_hdf5, table_of
from .import_dataset import Choices, import_recording, open_recording
from .recordings import (
    MANIFEST_KEY,
    MAX_ROWS,
    SIDECAR,
    About,
    Recording,
    RowFile,
    guarded,
    parse_about,
    sidecar,
    unreadable,
)
from .row_validation import ImportReport

__all__ = [
    "MANIFEST_KEY",
    "MAX_ROWS",
    "SIDECAR",
    "About",
    "Choices",
    "Columns",
    "ImportReport",
    "Recording",
    "RowFile",
    "add_final_observation",
    "check_hdf5",
    "guarded",
    "import_recording",
    "open_recording",
    "parse_about",
    "parse_columns",
    "sidecar",
    "table_of",
    "unreadable",
]
