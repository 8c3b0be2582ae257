"""The verdict on a legacy row: a message within the limits of the API, or reasons against it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sagastore.legacy.values import LegacyMessage, Problem, RawValue, read_row
from sagastore.message_rules import MessageRules

__all__ = ["Reasons", "judge_row", "reason_of"]

_UNREAD = LegacyMessage("", "", "", "", (), 0, "{}", None, None)


class Reasons(MessageRules):
    """Adds violations of the limits to the problems of a row.

    A field that could not be read has its problem already, and gets no further one.

    Args:
        problems: The problems found while the values were read; violations are appended.
    """

    def __init__(self, problems: list[Problem]) -> None:
        self._problems = problems
        self._unread = {problem.field for problem in problems}

    def add(self, field: str, reason: str) -> None:
        """Note a violation under the name of the column."""
        column = "metadata" if field == "metadata_json" else field
        if column.partition("[")[0] not in self._unread:
            self._problems.append(Problem(column, reason))


def judge_row(
    values: Sequence[RawValue], unreadable: Iterable[Problem] = ()
) -> tuple[LegacyMessage, list[Problem]]:
    """Return the message of a row of the legacy table ``messages``, and its problems.

    The message is valid only if the list is empty; its metadata is then canonical. This function
    raises nothing: whatever goes wrong in a row is a problem of that row.

    Args:
        values: The values in the order of COLUMNS.
        unreadable: Problems of columns that SQLite could not return; their values are ignored.
    """
    failed = list(unreadable)
    try:
        message, problems = read_row(values)
        unread = {problem.field for problem in failed}
        problems = failed + [problem for problem in problems if problem.field not in unread]
        metadata = Reasons(problems).message(
            "",
            message_id=message.id,
            provider=message.provider,
            role=message.role,
            content=message.content,
            tags=message.tags,
            metadata=message.metadata,
            session_id=message.session_id,
        )
    except Exception as exc:  # noqa: BLE001 - one row must never stop the rows beside it
        return _UNREAD, [*failed, Problem("row", f"cannot be converted: {type(exc).__name__}")]
    return message._replace(metadata=metadata), problems


def reason_of(problems: Sequence[tuple[str, str]]) -> str:
    """Return every problem, in one line, as quarantine, inspection and rejects show it."""
    return "; ".join(f"{field}: {reason}" for field, reason in problems)
