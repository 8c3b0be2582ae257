"""Human-readable output of sessions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sagastore import Session
from sagastore.cli.console import Row, Screen
from sagastore.cli.message_view import pretty_json
from sagastore.cli.times import show_time
from sagastore.commandline.sanitize import one_line

__all__ = ["table", "whole"]

_HANG = 14
_SUBJECT = 60


def table(out: Screen, sessions: Iterable[Session]) -> None:
    """Print a table of sessions."""
    out.table(
        "Sessions",
        ("session", "title or first message", "messages", "last activity", "providers"),
        map(_cells, sessions),
    )


def _cells(session: Session) -> tuple[str, ...]:
    return (
        session.session_id,
        _shortened(session.title or session.first_message),
        f"{session.message_count:,}",
        show_time(session.last_time or session.created_at),
        ", ".join(session.providers) or "-",
    )


def _shortened(text: str) -> str:
    line = one_line(text) or "-"
    return line if len(line) <= _SUBJECT else f"{line[: _SUBJECT - 1]}…"


def whole(out: Screen, session: Session) -> None:
    """Print all fields of a session, and an empty line."""
    rows = [Row(name, (value,), _HANG) for name, value in _fields(session)]
    out.page([*rows, Row("", ())])


def _fields(session: Session) -> Iterator[tuple[str, str]]:
    yield "session", session.session_id
    yield "title", session.title or "-"
    yield "messages", f"{session.message_count:,}"
    yield "providers", ", ".join(session.providers) or "-"
    yield "first message", _shortened(session.first_message)
    yield "time", _span(session)
    metadata, *more = pretty_json(session.metadata).split("\n")
    yield "metadata", metadata
    for line in more:
        yield "", line
    yield "created", f"{show_time(session.created_at)} UTC"
    yield "changed", f"{show_time(session.updated_at)} UTC, revision {session.revision}"


def _span(session: Session) -> str:
    if session.first_time is None:
        return "-"
    return f"{show_time(session.first_time)} to {show_time(session.last_time)} UTC"
