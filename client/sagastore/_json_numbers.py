"""Exact conversion of JSON numbers to Python numbers and back.

No digit is lost in either direction:

- An integer becomes an int, or a Decimal if it has more digits than
  `sys.set_int_max_str_digits` allows.
- Any other number becomes a float if the float is exact, else a Decimal. There are two
  definitions of exact: the same value (`real`), and the same spelling or, for a number with
  an exponent, the same value (`real_as_written`).
- A float is written with a fraction, and without an exponent if that is positive, so that it
  is read as a float again. An int has neither.
- A number whose exponent is out of range for Decimal raises ValueError.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import NoReturn

__all__ = ["constant", "decimal", "format_number", "integer", "real", "real_as_written"]

# Limits of PostgreSQL's numeric, and so of its jsonb (documentation, 8.1.2).
_MAX_DIGITS_BEFORE_POINT = 131_072
_MAX_DIGITS_AFTER_POINT = 16_383

_SHOWN_DIGITS = 40


def integer(text: str) -> int | Decimal:
    """Parse an integer of any length."""
    try:
        return int(text)
    except ValueError:  # More digits than sys.set_int_max_str_digits allows.
        return decimal(text)


def real(text: str) -> float | Decimal:
    """Parse a number as a float if the float has the same value, else as a Decimal.

    Raises:
        ValueError: The exponent is out of range.
    """
    number = float(text)
    if repr(number) == text:
        return number
    exact = decimal(text)
    if isfinite(number) and Decimal(repr(number)) == exact:
        return number
    return exact


def real_as_written(text: str) -> float | Decimal:
    """Parse a number as a float if the float is written the same, else as a Decimal.

    `1.50` equals the float 1.5 but is not written the same. PostgreSQL's jsonb keeps
    trailing zeros, so a Decimal is needed to store the text of the input.

    A number with an exponent, such as `1e23`, becomes a float if that has the same value:
    jsonb does not keep the exponent, and without it the number would be an integer.

    Raises:
        ValueError: The exponent is out of range.
    """
    number = float(text)
    if repr(number) == text:
        return number
    return real(text) if "e" in text or "E" in text else decimal(text)


def decimal(text: str) -> Decimal:
    """Parse any JSON number as a Decimal.

    Raises:
        ValueError: The exponent is out of range.
    """
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    # The caller's decimal context may have disabled the exception.
    if not number.is_finite():
        shown = text if len(text) <= _SHOWN_DIGITS else f"{text[:_SHOWN_DIGITS]}…"
        raise ValueError(f"contains the number {shown}, whose exponent is out of range")
    return number


def constant(text: str) -> NoReturn:
    """Reject NaN and Infinity, which Python's parser accepts and RFC 8259 does not.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"contains {text}, which is not JSON")


def format_number(value: float | Decimal, path: str) -> str:
    """Return the JSON text of a number.

    Args:
        value: An int, a float or a Decimal.
        path: The place of the value, for error messages.

    Raises:
        ValueError: NaN, Infinity, or more digits than PostgreSQL can store.
    """
    if isinstance(value, Decimal):
        return _format_decimal(value, path)
    if isinstance(value, int):
        try:
            return int.__repr__(value)
        except ValueError:  # More digits than sys.set_int_max_str_digits allows.
            return format(Decimal(value), "f")
    if not isfinite(value):
        raise ValueError(f"{path}: {value!r} is not a JSON number")
    text = float.__repr__(value)
    return f"{Decimal(text):f}.0" if "e+" in text else text


def _format_decimal(value: Decimal, path: str) -> str:
    if not value.is_finite():
        raise ValueError(f"{path}: {value} is not a JSON number")
    exponent = int(value.as_tuple().exponent)
    if value.adjusted() >= _MAX_DIGITS_BEFORE_POINT or -exponent > _MAX_DIGITS_AFTER_POINT:
        # The plain text of 1E+999999999 would not fit into memory.
        raise ValueError(
            f"{path}: a number may have {_MAX_DIGITS_BEFORE_POINT:,} digits before the point "
            f"and {_MAX_DIGITS_AFTER_POINT:,} after it"
        )
    return format(value, "f")
