"""Human-readable output of file records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sagastore import File
from sagastore.cli.console import Row, Screen
from sagastore.cli.message_view import pretty_json
from sagastore.cli.times import show_time
from sagastore.commandline.text import counted

__all__ = ["table", "whole"]

_HANG = 14
_INDENT = 4


def table(out: Screen, files: Iterable[File]) -> None:
    """Print a table of file records."""
    out.table("Files", ("id", "name", "type", "bytes", "uploaded", "tags"), map(_cells, files))


def _cells(file: File) -> tuple[str, ...]:
    return (
        file.id,
        file.filename,
        file.file_type,
        f"{file.file_size:,}",
        show_time(file.uploaded_at),
        ", ".join(file.tags) or "-",
    )


def whole(out: Screen, file: File) -> None:
    """Print all fields of a file record, and the text."""
    out.page([Row(name, (value,), _HANG) for name, value in _fields(file)])
    if file.extracted_text:
        out.line("")
        out.line(file.extracted_text, indent=_INDENT if out.is_terminal else 0)


def _fields(file: File) -> Iterator[tuple[str, str]]:
    yield "id", file.id
    yield "name", file.filename
    yield "path", file.filepath
    yield "type", file.file_type
    yield "size", counted(file.file_size, "byte")
    yield "uploaded", f"{show_time(file.uploaded_at, exact=True)} UTC"
    yield "tags", ", ".join(file.tags) or "-"
    metadata, *more = pretty_json(file.metadata).split("\n")
    yield "metadata", metadata
    for line in more:
        yield "", line
    created = "" if file.created_at is None else f"{show_time(file.created_at)} UTC, "
    yield "saved", f"{created}revision {file.revision}"
