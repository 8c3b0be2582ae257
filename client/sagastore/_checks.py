"""Validation of values that a caller passes; every error names the argument.

Each check takes a value and the name of the argument, and returns the value to use:
an iterable of strings becomes a tuple, the name of a member becomes the member.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from datetime import datetime
from numbers import Real
from typing import Any, TypeVar

from sagastore._enums import shown
from sagastore.errors import ArgumentTypeError, FieldViolation, InvalidArgumentError

__all__ = [
    "Check",
    "at_least",
    "callback",
    "count",
    "finite",
    "flag",
    "instance",
    "int64",
    "integer",
    "invalid",
    "iterable",
    "mapping",
    "messages",
    "number",
    "optional",
    "seconds",
    "text",
    "text_or_texts",
    "texts",
    "time",
    "token",
    "wrong_type",
]

E = TypeVar("E", bound=InvalidArgumentError)
Check = Callable[[Any, str], Any]

_INT32 = 2**31
_INT64 = 2**63


def invalid(field: str, description: str) -> InvalidArgumentError:
    """Return the error for one invalid field or argument."""
    return _describe(InvalidArgumentError, field, description)


def wrong_type(field: str, expected: str, value: object) -> ArgumentTypeError:
    """Return the error for a value of the wrong type; it never contains the value."""
    return _describe(ArgumentTypeError, field, f"expected {expected}, got {_kind(value)}")


def _describe(kind: type[E], field: str, description: str) -> E:
    if description.startswith(field) and not description[len(field) :][:1].isalnum():
        line = description
    else:
        line = f"{field}{' ' if description.startswith('must ') else ': '}{description}"
    error = kind(line)
    error.violations = (FieldViolation(field, description.removeprefix(f"{field}: ")),)
    return error


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def text(value: Any, name: str) -> str:
    """Require a str that can be encoded."""
    if type(value) is str and value.isascii():
        return value
    return _unusual_text(value, name)


def _unusual_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(name, "a str", value)
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        code = ord(value[exc.start])
        raise invalid(
            name,
            f"contains the lone surrogate U+{code:04X} at position {exc.start}, which is not text",
        ) from None
    return value


def texts(value: Any, name: str) -> tuple[str, ...]:
    """Require several strings; an iterator is read."""
    if type(value) is not tuple:
        value = tuple(iterable(value, name))
    for index, item in enumerate(value):
        if not (type(item) is str and item.isascii()):
            _unusual_text(item, f"{name}[{index}]")
    return value  # type: ignore[no-any-return]  # a tuple now


def text_or_texts(value: Any, name: str) -> str | tuple[str, ...]:
    """Require a str or several."""
    if isinstance(value, str):
        return text(value, name)
    if not isinstance(value, Iterable) or isinstance(value, (bytes, bytearray, Mapping)):
        raise wrong_type(name, "a str or several strings", value)
    return texts(value, name)


def token(value: Any, name: str) -> Any:
    """Require a token: a str or a function that returns one."""
    if value is None or isinstance(value, str) or callable(value):
        return value
    raise wrong_type(name, "a str or a function that returns one", value)


def iterable(value: Any, name: str, items: str = "strings") -> Any:
    """Require an iterable of several items; it is not read."""
    if type(value) is list or type(value) is tuple:
        return value
    if isinstance(value, str):
        raise _describe(
            ArgumentTypeError, name, f"expected several {items}, got the one string {shown(value)}"
        )
    if not isinstance(value, Iterable) or isinstance(value, (bytes, bytearray, Mapping)):
        raise wrong_type(name, f"several {items}", value)
    return value


def messages(value: Any, name: str) -> Any:
    """Require an iterable of messages; it is not read."""
    return value if isinstance(value, AsyncIterable) else iterable(value, name, "messages")


def flag(value: Any, name: str) -> bool:
    """Require True or False."""
    if value is True or value is False:
        return value
    raise wrong_type(name, "True or False", value)


def integer(value: Any, name: str, limit: float = _INT32) -> int:
    """Require an integer, by default of 32 bits."""
    if type(value) is not int:
        if isinstance(value, bool) or not hasattr(type(value), "__index__"):
            raise wrong_type(name, "an int", value)
        value = int(value)
    if not -limit <= value < limit:
        raise invalid(name, f"{shown(value)} is out of range")
    return value  # type: ignore[no-any-return]  # an int now


def int64(value: Any, name: str) -> int:
    """Require an integer of 64 bits."""
    return integer(value, name, _INT64)


def count(value: Any, name: str) -> int:
    """Require an integer of at least 0."""
    given = integer(value, name)
    at_least(given, 0, name)
    return given


def number(value: Any, name: str) -> float:
    """Require a number."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        raise wrong_type(name, "a number", value)
    try:
        return float(value)
    except OverflowError:
        raise invalid(name, "is too large") from None


def seconds(value: Any, name: str) -> float:
    """Require a duration: a number greater than 0, `math.inf` included."""
    duration = number(value, name)
    if not duration > 0:
        raise invalid(name, f"must be greater than 0, not {shown(value)}")
    return duration


def time(value: Any, name: str) -> datetime:
    """Require a datetime with an offset from UTC."""
    if not isinstance(value, datetime):
        raise wrong_type(name, "a datetime", value)
    if value.utcoffset() is None:
        raise invalid(
            name,
            f"{value.isoformat()} has no time zone; "
            "use an aware datetime, for example datetime.now(timezone.utc)",
        )
    return value


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    """Require a mapping; its values are checked when they are encoded."""
    if not isinstance(value, Mapping):
        raise wrong_type(name, "a mapping", value)
    return value


def callback(value: Any, name: str) -> Callable[..., Any]:
    """Require a function."""
    if not callable(value):
        raise wrong_type(name, "a function", value)
    return value  # type: ignore[no-any-return]  # any callable


def instance(*kinds: type[Any]) -> Check:
    """Return a check for an object of one of the classes."""
    expected = " or ".join(_article(kind.__name__) for kind in kinds)

    def check(value: Any, name: str) -> Any:
        if isinstance(value, kinds):
            return value
        raise wrong_type(name, expected, value)

    return check


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def optional(check: Check) -> Check:
    """Return a check that also accepts None."""

    def check_or_none(value: Any, name: str) -> Any:
        return None if value is None else check(value, name)

    return check_or_none


def at_least(value: int, limit: int, name: str) -> None:
    """Require a minimum.

    Raises:
        InvalidArgumentError: `value` is less than `limit`.
    """
    if value < limit:
        raise invalid(name, f"must be at least {limit}, not {shown(value)}")


def finite(value: Any, name: str, minimum: float) -> float:
    """Require a finite number of at least `minimum`."""
    given = number(value, name)
    if not minimum <= given < math.inf:
        raise invalid(name, f"must be finite and at least {minimum:g}, not {shown(value)}")
    return given
