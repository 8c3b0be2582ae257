"""Conversion of timestamps, exact to the microsecond by integer arithmetic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["from_wire", "to_wire"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MIN_SECONDS = -62_135_596_800  # 0001-01-01T00:00:00Z
_MAX_SECONDS = 253_402_300_799  # 9999-12-31T23:59:59Z


def to_wire(value: datetime, name: str) -> tuple[int, int]:
    """Return an aware datetime as seconds and nanoseconds since 1970.

    Raises:
        ValueError: The time in UTC is outside the years 1 to 9999.
    """
    delta = value - _EPOCH
    seconds = delta.days * 86_400 + delta.seconds
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS:
        raise ValueError(f"{name}: {value.isoformat()} is outside the years 1 to 9999 in UTC")
    return seconds, delta.microseconds * 1000


def from_wire(seconds: int, nanos: int) -> datetime:
    """Return seconds and nanoseconds since 1970 as an aware datetime in UTC."""
    return _EPOCH + timedelta(0, seconds, nanos // 1000)
