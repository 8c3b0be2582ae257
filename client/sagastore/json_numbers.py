"""Parser and writer of JSON numbers, for the client library, its commands and the server.

- `canonical_integer` and `canonical_real` return the text that PostgreSQL's jsonb prints, or
  reject the number. The service stores this text, and imports check numbers with it.
- `integer`, `real`, `real_as_written` and `decimal` return Python numbers, and
  `format_number` writes them.

Every function takes time and memory proportional to the length of its input or to
`MAX_WHOLE_DIGITS`, so `1e99999999999999999999` is as cheap to reject as `1`.

No digit is lost in either direction:

- An integer becomes an int, or a Decimal if it has more digits than
  `sys.set_int_max_str_digits` allows.
- Any other number becomes a float if the float is exact, else a Decimal. There are two
  definitions of exact: the same value (`real`), and the same spelling or, for a number with
  an exponent, the same value (`real_as_written`).
- A float is written with a fraction, and without an exponent if that is positive, so that it
  is read as a float again. An int has neither.
- A number whose exponent is out of range for Decimal raises JsonTextError, which is a
  ValueError.

This module needs only the standard library.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import NoReturn

__all__ = [
    "MAX_FRACTION_DIGITS",
    "MAX_WHOLE_DIGITS",
    "JsonTextError",
    "Number",
    "canonical_integer",
    "canonical_real",
    "constant",
    "decimal",
    "format_number",
    "integer",
    "real",
    "real_as_written",
]

MAX_WHOLE_DIGITS = 131_072
"""Digits before the decimal point of a PostgreSQL ``numeric`` (documentation, 8.1.2)."""

MAX_FRACTION_DIGITS = 16_383
"""Digits after the decimal point of a PostgreSQL ``numeric`` (documentation, 8.1.2)."""

_MAX_EXPONENT_CHARACTERS = 7
"""Longer exponents are out of range whatever the digits are."""

_SHOWN_DIGITS = 40


class JsonTextError(ValueError):
    """The text is not JSON that both stores can hold; the message says why."""


class Number(str):
    """A number by its canonical text."""

    __slots__ = ()


def canonical_integer(text: str) -> Number:
    """Return the canonical text of an integer.

    Raises:
        JsonTextError: It has more than MAX_WHOLE_DIGITS digits.
    """
    if len(text) - text.startswith("-") > MAX_WHOLE_DIGITS:
        raise _out_of_range(text)
    return Number("0" if text == "-0" else text)


def canonical_real(text: str) -> Number:
    """Return the text that PostgreSQL's ``numeric_out`` prints for a number.

    Args:
        text: A number with a fraction or an exponent.

    Raises:
        JsonTextError: It has more digits than MAX_WHOLE_DIGITS or MAX_FRACTION_DIGITS.
    """
    sign = "-" if text[0] == "-" else ""
    mantissa, _, exponent_text = text[len(sign) :].replace("E", "e").partition("e")
    if len(exponent_text) > _MAX_EXPONENT_CHARACTERS:
        raise _out_of_range(text)
    exponent = int(exponent_text or "0")
    whole, _, fraction = mantissa.partition(".")
    scale = max(len(fraction) - exponent, 0)
    digits = (whole + fraction).lstrip("0")
    if scale > MAX_FRACTION_DIGITS:
        raise _out_of_range(text)
    if not digits:
        return Number("0." + "0" * scale if scale else "0")
    if len(digits) - len(fraction) + exponent > MAX_WHOLE_DIGITS:
        raise _out_of_range(text)
    digits += "0" * max(exponent - len(fraction), 0)
    digits = digits.rjust(scale + 1, "0")
    point = len(digits) - scale
    return Number(sign + digits[:point] + ("." + digits[point:] if scale else ""))


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_DIGITS else f"{text[:_SHOWN_DIGITS]}…"


def _out_of_range(text: str) -> JsonTextError:
    return JsonTextError(
        f"holds the number {_shown(text)}, beyond the {MAX_WHOLE_DIGITS:,} digits before and "
        f"{MAX_FRACTION_DIGITS:,} after the point that PostgreSQL keeps"
    )


def integer(text: str) -> int | Decimal:
    """Parse an integer of any length."""
    try:
        return int(text)
    except ValueError:  # More digits than sys.set_int_max_str_digits allows.
        return decimal(text)


def real(text: str) -> float | Decimal:
    """Parse a number as a float if the float has the same value, else as a Decimal.

    Raises:
        JsonTextError: The exponent is out of range.
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
        JsonTextError: The exponent is out of range.
    """
    number = float(text)
    if repr(number) == text:
        return number
    return real(text) if "e" in text or "E" in text else decimal(text)


def decimal(text: str) -> Decimal:
    """Parse any JSON number as a Decimal.

    Raises:
        JsonTextError: The exponent is out of range.
    """
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    # The caller's decimal context may have disabled the exception.
    if not number.is_finite():
        raise JsonTextError(f"contains the number {_shown(text)}, whose exponent is out of range")
    return number


def constant(text: str) -> NoReturn:
    """Reject NaN and Infinity, which Python's parser accepts and RFC 8259 does not.

    Raises:
        JsonTextError: Always.
    """
    raise JsonTextError(f"contains {text}, which is not JSON")


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
    if value.adjusted() >= MAX_WHOLE_DIGITS or -exponent > MAX_FRACTION_DIGITS:
        # The plain text of 1E+999999999 would not fit into memory.
        raise ValueError(
            f"{path}: a number may have {MAX_WHOLE_DIGITS:,} digits before the point "
            f"and {MAX_FRACTION_DIGITS:,} after it"
        )
    return format(value, "f")
