"""Reads JSON so that numbers keep their spelling on the way to the server.

The library's own reader takes `1.50` as the float 1.5: the value is the same, the
text is not. PostgreSQL's jsonb, whose text SagaStore keeps, tells them apart; so
here a number that a float would spell differently becomes a Decimal, which is
written as the plain number that jsonb makes of it.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, NoReturn

__all__ = ["loads"]


def loads(text: str) -> Any:
    """Read JSON text (RFC 8259), and refuse an object with a duplicate key.

    Raises:
        ValueError: The text is not that; the error says why, in one line.
    """
    try:
        return _decoder.decode(text)
    except json.JSONDecodeError as exc:
        raise ValueError(f"is not JSON: {exc.msg} at character {exc.pos:,}") from None
    except RecursionError:
        raise ValueError("is JSON nested too deeply to read") from None
    except ValueError as exc:
        if "integer string conversion" not in str(exc):
            raise
    return _long_decoder.decode(text)


def _float(text: str) -> float | Decimal:
    number = float(text)
    return number if repr(number) == text else Decimal(text)


def _int(text: str) -> int | Decimal:
    try:
        return int(text)
    except ValueError:  # More digits than sys.set_int_max_str_digits allows.
        return Decimal(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"holds {text}, which is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"has the key {key[:40]!r} twice in one object")
            seen.add(key)
    return result


_decoder = json.JSONDecoder(
    parse_float=_float, parse_constant=_no_constant, object_pairs_hook=_unique
)
_long_decoder = json.JSONDecoder(
    parse_float=_float,
    parse_int=_int,
    parse_constant=_no_constant,
    object_pairs_hook=_unique,
)
