"""The reading of a row of a legacy table ``files``: a file record, or the reasons against it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sagastore.legacy import Problem, RawValue, Reasons, read_file_row
from sagastore_server.storage.file_validation import SentFile, checked_file
from sagastore_server.storage.files import File

_UNREAD = File("", "", "", "", "", (), 0, 0, "{}", None, 0, "{}")


class FileReading(NamedTuple):
    """A converted row, without regard to other rows."""

    record: File
    """Valid only if there are no problems; its revision is 0."""
    problems: list[Problem]


def read_file(
    values: Sequence[RawValue], extra: str = "{}", unreadable: Iterable[Problem] = ()
) -> FileReading:
    """Read a row from its values in the order of ``legacy.FILE_COLUMNS``.

    Whatever goes wrong in a row is a problem of that row.

    Args:
        values: The values.
        extra: The values of its other columns, as ``legacy.raw_row_as_json``.
        unreadable: Problems of columns that SQLite could not return; their values are ignored.

    """
    failed = list(unreadable)
    try:
        found, problems = read_file_row(values)
        unread = {problem.field for problem in failed}
        problems = failed + [problem for problem in problems if problem.field not in unread]
        draft = checked_file(Reasons(problems), "", SentFile(*found[:9]))
    except Exception as exc:  # noqa: BLE001 - one row must never stop the rows beside it
        return FileReading(
            _UNREAD, [*failed, Problem("row", f"cannot be converted: {type(exc).__name__}")]
        )
    times = (found.uploaded_at_us, draft.metadata, found.created_at_us)
    return FileReading(File(*draft[:7], *times, 0, extra), problems)
