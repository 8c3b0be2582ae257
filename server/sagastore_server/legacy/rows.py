"""The reading of a row of a legacy table ``files``: a file record, or the reasons against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sagastore.legacy import Problem, RawValue, Reasons, read_file_row
from sagastore_server.storage.file_validation import SentFile, checked_file
from sagastore_server.storage.files import File


class FileReading(NamedTuple):
    """A converted row, without regard to other rows."""

    record: File
    """Valid only if there are no problems; its revision is 0."""
    problems: list[Problem]


def read_file(values: Sequence[RawValue], extra: str = "{}") -> FileReading:
    """Read a row from its values in the order of ``legacy.FILE_COLUMNS``.

    ``extra`` has the values of its other columns, as ``legacy.raw_row_as_json``.
    """
    found, problems = read_file_row(values)
    draft = checked_file(Reasons(problems), "", SentFile(*found[:9]))
    times = (found.uploaded_at_us, draft.metadata, found.created_at_us)
    return FileReading(File(*draft[:7], *times, 0, extra), problems)
