"""Reader of JSON Lines: one message per line."""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final
from uuid import UUID

from sagastore import Message, _json, canonical_json, legacy
from sagastore.cli.times import parse_time
from sagastore.importers.base import Position, Problem, Row, file_identity
from sagastore.importers.foreign import explain_damage
from sagastore.json_numbers import Number

__all__ = ["BROKEN", "MAX_LINE", "JsonLines", "read_line"]

MAX_LINE: Final = 24 * 1024 * 1024
"""Bytes; longer than any valid message, even with every character escaped: 12 MB of content, 6 MiB
of metadata, 1.6 MB of tags."""

BROKEN: Final = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""Exceptions that reading a damaged or compressed file can raise."""

_BOM: Final = b"\xef\xbb\xbf"
_KEPT_OF_A_LONG_LINE: Final = 1000
_NAMESPACE: Final = UUID("8f1d4a34-4f0e-5d0b-9a55-6d9a0b7c2f11")
_IGNORED: Final = frozenset({"revision", "sequence"})
_MISSING: Final = object()


class JsonLines:
    """The lines of a file or of standard input.

    Args:
        name: The name for messages to the user.
        text: The lines, decompressed.
        path: The file; None if it cannot be read again.
        compressed: The compressed file, if `text` is decompressed; its position
            tells the progress.
    """

    kind = "JSON Lines"

    def __init__(
        self, name: str, text: IO[bytes], path: Path | None, compressed: IO[bytes] | None = None
    ) -> None:
        self.name = name
        self.notes: list[str] = []
        self.left_behind = 0
        self._text = text
        self._path = path
        self._compressed = compressed
        # The progress is known for a file, not for a pipe.
        self._measured = text if compressed is None else compressed
        self._reading = threading.Lock()

    def identity(self) -> dict[str, Any] | None:
        """Return values that change when the source changes; None if it cannot be resumed."""
        return None if self._path is None else file_identity(self._path)

    def total(self, start: Position | None) -> int | None:
        """Return the size on disk in bytes."""
        del start
        if not self._measured.seekable():
            return None
        return os.fstat(self._measured.fileno()).st_size

    def rows(self, start: Position | None) -> Iterator[Row]:
        """Yield the rows from a position on; empty lines are skipped."""
        offset, number = start or (0, 0)
        if offset:
            # For decompressed text, this reads up to the offset; sending is much slower.
            self._text.seek(offset)
        while line := self._read(MAX_LINE + 1):
            size = len(line)
            number += 1
            too_long = size > MAX_LINE
            if too_long and not line.endswith(b"\n"):
                size += self._skip_line()
            if not offset:
                line = line.removeprefix(_BOM)
            offset += size
            line = line.strip()
            message: Message | None
            problems: tuple[Problem, ...]
            if too_long:
                line = line[:_KEPT_OF_A_LONG_LINE]
                problem = Problem("line", f"is longer than {MAX_LINE:,} bytes")
                message, problems = None, (problem,)
            elif line:
                message, problems = read_line(line, number)
            else:
                continue
            after = Position(offset, number)
            yield Row(f"line {number}", line, message, problems, after, self._progress(offset))

    def _read(self, size: int) -> bytes:
        try:
            with self._reading:
                return self._text.readline(size)
        except BROKEN as exc:
            raise explain_damage(self.name, exc) from None

    def _progress(self, offset: int) -> int:
        if self._compressed is None or not self._compressed.seekable():
            return offset
        return self._compressed.tell()

    def _skip_line(self) -> int:
        size = 0
        while part := self._read(MAX_LINE):
            size += len(part)
            if part.endswith(b"\n"):
                break
        return size

    def raw_json(self, raw: bytes) -> str:
        """Return the line if it is JSON, else the line as a JSON string."""
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return json.dumps({"base64": base64.b64encode(raw).decode()})
        try:
            _json.loads_as_written(text)
        except ValueError:
            return json.dumps(text, ensure_ascii=False)
        return text

    def close(self) -> None:
        """Close the file, unless another thread is reading it."""
        # Closing would wait for that thread, which may be blocked on a pipe forever.
        # The end of the process closes the file.
        if not self._reading.acquire(blocking=False):
            return
        try:
            # A decompressing reader does not close the compressed file.
            self._measured.close()
            self._text.close()
        finally:
            self._reading.release()


def read_line(line: bytes, number: int) -> tuple[Message | None, tuple[Problem, ...]]:
    """Parse one line; return the message, or all problems.

    A line without an id gets an id that depends only on its content and number,
    so importing a file twice does not store a message twice.
    """
    try:
        values = canonical_json.parse_line(line.decode())
    except UnicodeDecodeError as exc:
        return None, (Problem("line", f"is not UTF-8 at byte {exc.start:,}"),)
    except ValueError as exc:
        return None, (Problem("line", str(exc)),)
    if not isinstance(values, dict):
        return None, (Problem("line", f"is {_kind(values)}, not a JSON object"),)
    try:
        reading = _Reading(values)
        message = reading.message(lambda: _derived_id(line, number))
    except Exception as exc:  # noqa: BLE001 - one line must never stop the lines beside it
        return None, (Problem("line", f"cannot be converted: {type(exc).__name__}"),)
    return (None, tuple(reading.problems)) if reading.problems else (message, ())


def _derived_id(line: bytes, number: int) -> str:
    digest = hashlib.sha1(_NAMESPACE.bytes, usedforsecurity=False)
    digest.update(b"%d\n" % number)
    digest.update(line)
    return str(UUID(bytes=digest.digest()[:16], version=5))


class _UnreadableError(ValueError):
    """A value is invalid for its field; the text is the reason."""


class _Reading:
    """Reads the values of one line and collects the problems."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self.problems: list[Problem] = []

    def message(self, make_id: Callable[[], str]) -> Message | None:
        """Return the message; None if there are problems."""
        take = self._take
        message_id = take("id", _text, None) or make_id()
        provider = take("provider", _text, _MISSING) or ""
        role = take("role", _text, _MISSING) or ""
        content = take("content", _text, _MISSING) or ""
        tags = take("tags", _tags, None) or ()
        timestamp = take("timestamp", _time, None)
        metadata = take("metadata", _object, None) or "{}"
        session_id = take("session_id", _text, None)
        created_at = take("created_at", _time, None)
        for name in self._values:
            if name not in _IGNORED:
                self.problems.append(Problem(_shown(name), "is not a field of a message"))
        found: list[legacy.Problem] = [legacy.Problem(*problem) for problem in self.problems]
        # The metadata has been checked when it was written.
        legacy.Reasons(found).message(
            "",
            message_id=message_id,
            provider=provider,
            role=role,
            content=content,
            tags=tags,
            metadata="",
            session_id=session_id,
        )
        self.problems = [Problem(*problem) for problem in found]
        if found:
            return None
        return Message(
            provider,
            role,
            content,
            id=message_id,
            tags=tags,
            timestamp=timestamp,
            metadata=_json.loads_as_written(metadata),
            session_id=session_id,
            created_at=created_at,
        )

    def _take(self, name: str, read: Callable[[Any], Any], default: object) -> Any:
        value = self._values.pop(name, default)
        if value is _MISSING or (value is None and default is _MISSING):
            self.problems.append(Problem(name, "is missing" if value is _MISSING else "is null"))
            return ""
        if value is None:
            return None
        if isinstance(value, canonical_json.Unstorable):
            self.problems.append(Problem(name, value.reason))
            return None
        try:
            return read(value)
        except ValueError as exc:
            self.problems.append(Problem(name, str(exc)))
            return None


def _shown(name: str) -> str:
    """Return a name for display: short, and without lone surrogates."""
    short = name if len(name) <= 40 else name[:40] + "…"
    return short.encode("utf-8", "backslashreplace").decode()


def _text(value: Any) -> str:
    if not isinstance(value, str) or isinstance(value, Number):
        raise _UnreadableError(f"is {_kind(value)}, not a string")
    return value


def _time(value: Any) -> Any:
    return parse_time(_text(value))


def _tags(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise _UnreadableError(f"is {_kind(value)}, not a list")
    for index, tag in enumerate(value):
        if not isinstance(tag, str) or isinstance(tag, Number):
            raise _UnreadableError(f"has {_kind(tag)} at position {index}, not a string")
    return value


def _object(value: Any) -> str:
    """Return the canonical text of an object."""
    if not isinstance(value, dict):
        raise _UnreadableError(f"is {_kind(value)}, not an object")
    return canonical_json.write(value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    names |= {Number: "a number"}
    return names.get(type(value), "an invalid value")
