"""Conversion of timestamps, exact to the microsecond by integer arithmetic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["from_wire", "require_aware", "to_wire"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MIN_SECONDS = -62_135_596_800  # 0001-01-01T00:00:00Z
_MAX_SECONDS = 253_402_300_799  # 9999-12-31T23:59:59Z


def require_aware(value: datetime, name: str) -> None:
    """Require a datetime with an offset from UTC.

    Raises:
        TypeError: `value` is not a datetime.
        ValueError: `value` is naive.
    """
    if not isinstance(value, datetime):
        raise TypeError(f"{name}: expected a datetime, got {type(value).__name__}")
    if value.utcoffset() is None:
        raise ValueError(
            f"{name}: {value.isoformat()} has no time zone; "
            "use an aware datetime, for example datetime.now(timezone.utc)"
        )


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
