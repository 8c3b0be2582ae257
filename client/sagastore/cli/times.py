"""Parsing and display of times; UTC unless there is an offset."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from sagastore import legacy

__all__ = ["from_micros", "parse_moment", "parse_time", "show_time", "utc_now"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AGO = re.compile(r"(\d{1,6})\s?([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def from_micros(micros: int) -> datetime:
    """Return the time of microseconds since 1970, in UTC."""
    return _EPOCH + timedelta(microseconds=micros)


def parse_time(text: str) -> datetime:
    """Parse a time in ISO form; without an offset it is UTC.

    Raises:
        ValueError: The text is not a time; the error says why.
    """
    # The rules of legacy files, except for bare numbers: in JSON these may be
    # milliseconds.
    if "-" not in text:
        raise ValueError(f"is {text[:40]!r}, which is not a time in ISO form")
    try:
        return from_micros(legacy.read_time(legacy.Text(text.encode())))
    except UnicodeEncodeError:
        raise ValueError("is text that is not a time in ISO form") from None


def parse_moment(text: str, now: datetime | None = None) -> datetime:
    """Parse a time in ISO form, or an age: `90s`, `30m`, `12h`, `7d`, `2w`.

    Raises:
        ValueError: The text is neither.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago is None:
        return parse_time(text)
    return (now or datetime.now(UTC)) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})


def show_time(value: datetime | None, *, exact: bool = False) -> str:
    """Return a time for display: UTC, to the second, or with all digits if `exact`."""
    if value is None:
        return "-"
    text = value.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
    return text if exact else text[:19]


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)
