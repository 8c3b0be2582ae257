"""Interpretation of the values of a legacy ARC SAGA ``memory.db``.

A row has either one unambiguous meaning or a list of problems; ambiguous values are
never guessed. The server quarantines a row with problems, with its raw values; the
client's import reports it.

Values have the types of SQLite's storage classes: ``None``, ``int``, ``float``,
``bytes`` for a BLOB, and `Text` for TEXT, which preserves invalid UTF-8 and embedded
NULs::

    connection.text_factory = legacy.Text

This module opens no files and needs only the standard library.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Sequence
from datetime import date
from functools import lru_cache, partial
from typing import Any, NamedTuple, NoReturn

__all__ = [
    "COLUMNS",
    "FILE_COLUMNS",
    "MAX_MICROS",
    "MIN_MICROS",
    "OPTIONAL",
    "REQUIRED",
    "LegacyFile",
    "LegacyMessage",
    "Problem",
    "RawValue",
    "Text",
    "raw_row_as_json",
    "read_file_row",
    "read_row",
    "read_time",
]

REQUIRED = ("id", "provider", "role", "content", "timestamp")
"""Columns that identify a legacy table ``messages``."""

OPTIONAL = ("tags", "metadata", "session_id", "created_at")
"""Columns that some versions lack; a missing column means NULL."""

COLUMNS = (
    "id",
    "provider",
    "role",
    "content",
    "tags",
    "timestamp",
    "metadata",
    "session_id",
    "created_at",
)
"""The order of the values for `read_row`."""

FILE_COLUMNS = (
    "id",
    "filename",
    "filepath",
    "file_type",
    "extracted_text",
    "tags",
    "file_size",
    "uploaded_at",
    "metadata",
    "created_at",
)
"""The order of the values for `read_file_row`; a missing column means NULL."""

MIN_MICROS = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z
MAX_MICROS = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_MICROS = 1_000_000
_MIN_UNIX = 1_000_000_000  # 2001-09-09; a Julian day or YYYYMMDD is much smaller.
_MAX_UNIX = 4_100_000_000  # 2099-12-03; milliseconds since 1970 are much larger.
_SHOWN = 40

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)"
    r"(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?"
    r" ?([Zz]|[+-]\d\d(?::?\d\d(?::\d\d(?:\.\d{1,6})?)?)?)?)?",
    re.ASCII,
)
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)?:?(\d\d)?\.?(\d*)", re.ASCII)
_NUMBER = re.compile(r"(\d+)(?:\.(\d*))?", re.ASCII)
_WHITESPACE = " \t\r\n"


class Text(bytes):
    """The bytes of a TEXT value; a plain ``bytes`` is a BLOB."""

    __slots__ = ()


RawValue = int | float | bytes | None
"""A value of one of SQLite's storage classes."""


class Problem(NamedTuple):
    """Why a row has no unambiguous meaning."""

    field: str
    """The column with the problem."""
    reason: str
    """The problem of its value, in one line."""


class LegacyMessage(NamedTuple):
    """The values of a legacy row; a field with a problem has a placeholder."""

    id: str
    provider: str
    role: str
    content: str
    tags: tuple[str, ...]
    timestamp_us: int
    """Microseconds since 1970-01-01 UTC, within the years 0001 to 9999."""
    metadata: str
    """Text of a JSON object, unchanged; it may contain NaN and duplicate keys."""
    session_id: str | None
    created_at_us: int | None
    """Microseconds since 1970-01-01 UTC; None if the row has no value."""


class LegacyFile(NamedTuple):
    """The values of a legacy row of ``files``; a field with a problem has a placeholder."""

    id: str
    filename: str
    filepath: str
    file_type: str
    extracted_text: str
    tags: tuple[str, ...]
    file_size: int
    """Bytes; 0 if the row has no value."""
    uploaded_at_us: int
    """Microseconds since 1970-01-01 UTC, within the years 0001 to 9999."""
    metadata: str
    """Text of a JSON object, unchanged."""
    created_at_us: int | None
    """Microseconds since 1970-01-01 UTC; None if the row has no value."""


class _UnreadableError(ValueError):
    """A value has no unambiguous meaning; the text is the reason."""


def read_row(values: Sequence[RawValue]) -> tuple[LegacyMessage, list[Problem]]:
    """Read a row of the legacy ``messages`` table.

    ``values`` are in the order of COLUMNS. The list of problems has every invalid
    column; the message is valid only if the list is empty. `judge_row` also checks the
    limits of the API (lengths, U+0000, values that JSONB cannot store).
    """
    message_id, provider, role, content, tags, timestamp, metadata, session, created = values
    problems: list[Problem] = []
    attempt = partial(_attempt, problems)
    message = LegacyMessage(
        attempt("id", _required_text, message_id, ""),
        attempt("provider", _required_text, provider, ""),
        attempt("role", _required_text, role, ""),
        attempt("content", _required_text, content, ""),
        attempt("tags", _tags, tags, ()),
        attempt("timestamp", _time, timestamp, 0),
        attempt("metadata", _metadata, metadata, "{}"),
        attempt("session_id", _text, session, None),
        None if created is None else attempt("created_at", _time, created, None),
    )
    return message, problems


def read_file_row(values: Sequence[RawValue]) -> tuple[LegacyFile, list[Problem]]:
    """Read a row of the legacy ``files`` table.

    ``values`` are in the order of FILE_COLUMNS. The rules are those of `read_row`; a NULL
    text is empty, and a NULL size is 0.
    """
    file_id, filename, filepath, kind, text, tags, size, uploaded, metadata, created = values
    problems: list[Problem] = []
    attempt = partial(_attempt, problems)
    record = LegacyFile(
        attempt("id", _required_text, file_id, ""),
        attempt("filename", _required_text, filename, ""),
        attempt("filepath", _required_text, filepath, ""),
        attempt("file_type", _required_text, kind, ""),
        attempt("extracted_text", _text, text, "") or "",
        attempt("tags", _tags, tags, ()),
        attempt("file_size", _file_size, size, 0),
        attempt("uploaded_at", _time, uploaded, 0),
        attempt("metadata", _metadata, metadata, "{}"),
        None if created is None else attempt("created_at", _time, created, None),
    )
    return record, problems


def _attempt(
    problems: list[Problem],
    field: str,
    read: Callable[[RawValue], Any],
    value: RawValue,
    placeholder: Any,
) -> Any:
    try:
        return read(value)
    except _UnreadableError as exc:
        problems.append(Problem(field, str(exc)))
        return placeholder


def read_time(value: RawValue) -> int:
    """Return the value of a time column as microseconds since 1970-01-01 UTC.

    - Text: ``YYYY-MM-DD``, which means midnight, optionally followed by ``T`` or a
      space and ``HH:MM[:SS[.fraction]]``. The offset is ``Z``, ``±HH``, ``±HHMM`` or
      ``±HH:MM[:SS[.ffffff]]``; without an offset the time is UTC.
    - Number: Unix seconds between 2001 and 2099; a REAL is rounded to the microsecond.

    Text finer than a microsecond is truncated toward the past, as the service truncates
    times.

    Week dates, dates without hyphens, hours without minutes, milliseconds and Julian
    days are rejected.

    Raises:
        ValueError: The value is ambiguous or not a time; the text is the reason, in one
            line.

    """
    return _time(value)


def raw_row_as_json(columns: Sequence[str], values: Sequence[RawValue]) -> str:
    r"""Return a row's raw values, by column name, as a lossless JSON object.

    - NULL is null, TEXT is a string, which may contain ``\u0000``.
    - INTEGER and REAL are numbers; a REAL always has a point or an exponent. An infinite
      REAL is ``{"real": "Infinity"}``.
    - A BLOB is ``{"base64": "…"}``; TEXT that is not UTF-8 is
      ``{"base64": "…", "type": "text"}``.
    """
    row = {name: _as_json(value) for name, value in zip(columns, values, strict=True)}
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _as_json(value: RawValue) -> Any:
    if isinstance(value, bytes):
        if isinstance(value, Text):
            try:
                return value.decode()
            except UnicodeDecodeError:
                return {"base64": base64.b64encode(value).decode(), "type": "text"}
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        # SQLite stores NaN as NULL, so only the infinities occur.
        return {"real": "Infinity" if value > 0 else "-Infinity"}
    return value


def _required_text(value: RawValue) -> str:
    text = _text(value)
    if text is None:
        raise _UnreadableError("is NULL")
    return text


def _text(value: RawValue) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as exc:
            kind = "text with" if isinstance(value, Text) else "a BLOB of"
            raise _UnreadableError(
                f"is {kind} bytes that are not UTF-8, the first at {exc.start:,}"
            ) from None
    if isinstance(value, float):
        raise _UnreadableError(f"is the real number {value!r}, which has more than one spelling")
    return None if value is None else str(value)


def _file_size(value: RawValue) -> int:
    if value is None:
        return 0
    if not isinstance(value, int):
        kinds = {float: "a real number", Text: "text"}
        raise _UnreadableError(f"is {kinds.get(type(value), 'a BLOB')}, not an integer")
    if value < 0:
        raise _UnreadableError(f"is {value}, which is negative")
    return value


# ------------------------------------------------------------------ JSON


def _ignore_number(_: str) -> None:
    """Ignore a number: its value is not needed, and int() limits the digits."""


def _reject_constant(name: str) -> NoReturn:
    raise _UnreadableError(f"contains {name}, which is not JSON")


_TAGS = json.JSONDecoder(
    parse_float=_ignore_number, parse_int=_ignore_number, parse_constant=_reject_constant
)
_METADATA = json.JSONDecoder(
    parse_float=_ignore_number, parse_int=_ignore_number, parse_constant=_ignore_number
)


def _tags(value: RawValue) -> tuple[str, ...]:
    text = (_text(value) or "").strip(_WHITESPACE)
    if text in {"", "[]", "null"}:
        return ()
    tags = _decode(_TAGS, text)
    if not isinstance(tags, list):
        raise _UnreadableError(f"is {_kind(tags)}, not a JSON list")
    for index, tag in enumerate(tags):
        if not isinstance(tag, str):
            raise _UnreadableError(f"has {_kind(tag)} at position {index}, not a string")
    return tuple(tags)


def _metadata(value: RawValue) -> str:
    text = (_text(value) or "").strip(_WHITESPACE)
    if text in {"", "{}", "null"}:
        return "{}"
    metadata = _decode(_METADATA, text)
    if not isinstance(metadata, dict):
        raise _UnreadableError(f"is {_kind(metadata)}, not a JSON object")
    return text


def _decode(decoder: json.JSONDecoder, text: str) -> Any:
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as exc:
        raise _UnreadableError(f"is not JSON: {exc.msg} at character {exc.pos}") from None
    except RecursionError:
        raise _UnreadableError("is nested too deeply") from None


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a JSON boolean"
    names: dict[type, str] = {dict: "a JSON object", list: "a JSON list", str: "a JSON string"}
    return names.get(type(value), "a JSON number or null")


# ------------------------------------------------------------------ times


def _time(value: RawValue) -> int:
    if isinstance(value, Text):
        return _text_time(value)
    if isinstance(value, bytes):
        raise _UnreadableError("is a BLOB, not a time")
    if value is None:
        raise _UnreadableError("is NULL")
    if isinstance(value, float):
        return _real_time(value)
    return _unix_time(value, 0, repr(value))


def _text_time(value: Text) -> int:
    try:
        text = value.decode("ascii").strip(_WHITESPACE)
    except UnicodeDecodeError:
        raise _UnreadableError("is text that is not a time in ISO form") from None
    match = _TIME.fullmatch(text)
    if match:
        return _iso_time(match, text)
    number = _NUMBER.fullmatch(text)
    if number:
        # In a column without numeric affinity, SQLite stores a number as text.
        return _unix_time(int(number[1][:30]), _micros(number[2] or ""), text)
    raise _UnreadableError(f"is {_shown(text)}, which is not a time in ISO form")


def _iso_time(match: re.Match[str], text: str) -> int:
    day, of_hour, of_minute, of_second, fraction, named_offset = match.groups()
    try:
        days = _days(day)
    except ValueError:
        raise _UnreadableError(f"is {_shown(text)}, a day that does not exist") from None
    hour, minute, second = int(of_hour or 0), int(of_minute or 0), int(of_second or 0)
    if hour > 23 or minute > 59 or second > 59:
        raise _UnreadableError(f"is {_shown(text)}, a time of day that does not exist")
    seconds = ((days * 24 + hour) * 60 + minute) * 60 + second
    offset = _offset(named_offset, text) if named_offset else 0
    micros = seconds * _MICROS + (_micros(fraction) if fraction else 0) - offset
    if not MIN_MICROS <= micros <= MAX_MICROS:
        raise _UnreadableError(f"is {_shown(text)}, which in UTC is outside the years 0001 to 9999")
    return micros


@lru_cache(maxsize=4096)
def _days(day: str) -> int:
    """Return the days from 1970-01-01 to YYYY-MM-DD; cached, because days repeat.

    Raises:
        ValueError: The day does not exist.

    """
    year, month, day_of_month = day.split("-")
    return date(int(year), int(month), int(day_of_month)).toordinal() - _EPOCH_DAY


def _micros(fraction: str) -> int:
    """Return the whole microseconds of a decimal fraction of a second."""
    return int(fraction[:6].ljust(6, "0"))


def _offset(offset: str, text: str) -> int:
    """Return an offset from UTC in microseconds."""
    match = _OFFSET.fullmatch(offset)
    if match is None:  # Z
        return 0
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[1:4])
    if hours > 23 or minutes > 59 or seconds > 59:
        raise _UnreadableError(f"is {_shown(text)}, whose offset is a day or more, or malformed")
    micros = ((hours * 60 + minutes) * 60 + seconds) * _MICROS + _micros(match[5])
    return -micros if match[1] == "-" else micros


def _real_time(value: float) -> int:
    if not math.isfinite(value):
        raise _UnreadableError("is an infinite number, not a time")
    numerator, denominator = value.as_integer_ratio()
    # Exact: a product of floats would be rounded twice.
    micros = (2 * numerator * _MICROS + denominator) // (2 * denominator)
    return _unix_time(micros // _MICROS, micros % _MICROS, repr(value))


def _unix_time(seconds: int, micros: int, shown: str) -> int:
    if not _MIN_UNIX <= seconds < _MAX_UNIX:
        raise _UnreadableError(
            f"is the number {_shown(shown)}, which may be Unix seconds, milliseconds, "
            "a Julian day or a date"
        )
    return seconds * _MICROS + micros


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
