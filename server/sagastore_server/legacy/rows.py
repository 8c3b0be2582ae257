"""The reading of a row of a legacy table ``files``: a file record, or the reasons against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sagastore.legacy import Problem, RawValue, read_file_row
from sagastore_server.storage.file_validation import SentFile, checked_file
from sagastore_server.storage.files import File
from sagastore_server.storage.validation import Violations


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
    violations = Violations()
    draft = checked_file(violations, "", SentFile(*found[:9]))
    if violations.found:
        add_violations(problems, violations)
    times = (found.uploaded_at_us, draft.metadata, found.created_at_us)
    return FileReading(File(*draft[:7], *times, 0, extra), problems)


def add_violations(problems: list[Problem], violations: Violations) -> None:
    """Add broken limits, except of fields that could not be read at all."""
    unread = {problem.field for problem in problems}
    for field, reason in violations.found:
        # Use the name of the column instead of the API field.
        column = "metadata" if field == "metadata_json" else field
        if column.partition("[")[0] not in unread:
            problems.append(Problem(column, reason))


def reason_of(problems: Sequence[Problem]) -> str:
    """Return every problem, in one line."""
    return "; ".join(f"{problem.field}: {problem.reason}" for problem in problems)
