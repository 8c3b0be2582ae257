"""Reader of legacy ARC SAGA files, shared by the server and the client's imports.

`sagastore-server inspect`, `sagastore-server serve --sqlite` and `sagastore import` read a legacy
file with this package only, so they find the same rows, values and reasons:

- `values`: the meaning of the values of a row.
- `judge`: the verdict on a row: a message within the limits of the API, or the reasons against it.
- `table`: the rows of the table ``messages``, in the order in which they were written.
- `database`: what a SQLite file is, and how it is opened without changing it.

This module has the names that need no SQLite.
"""

from __future__ import annotations

from sagastore.legacy.judge import Reasons, judge_row, reason_of
from sagastore.legacy.values import (
    COLUMNS,
    FILE_COLUMNS,
    OPTIONAL,
    REQUIRED,
    LegacyFile,
    LegacyMessage,
    Problem,
    RawValue,
    Text,
    raw_row_as_json,
    read_file_row,
    read_row,
    read_time,
)

__all__ = [
    "COLUMNS",
    "FILE_COLUMNS",
    "OPTIONAL",
    "REQUIRED",
    "LegacyFile",
    "LegacyMessage",
    "Problem",
    "RawValue",
    "Reasons",
    "Text",
    "judge_row",
    "raw_row_as_json",
    "read_file_row",
    "read_row",
    "read_time",
    "reason_of",
]
