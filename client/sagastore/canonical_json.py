r"""One text for each JSON value: the text that PostgreSQL's ``jsonb`` prints.

Metadata is kept as text on SQLite and as JSONB on PostgreSQL. JSONB keeps a
value and forgets its spelling, so the service brings each value into JSONB's
own spelling before it stores it anywhere. Then both stores hold, compare and
return the same text, and equal values are equal strings.

The spelling (PostgreSQL 18, ``jsonb_out``): keys ordered by the length of their
UTF-8 bytes, then by those bytes; ``", "`` and ``": "`` between; numbers in plain
decimal notation with the trailing zeros of the input; no negative zero; only
``"``, ``\`` and control characters below U+0020 escaped.
``tests/unit/test_canonical_json.py`` compares it with a real server.

The server stores metadata with this module, and imports check metadata with it, so
both reject the same values with the same reasons. It needs only the standard library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from json.encoder import encode_basestring as _quoted
from typing import Any, NoReturn

from sagastore.json_numbers import (
    JsonTextError,
    Number,
    canonical_integer,
    canonical_real,
)

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "JsonTextError",
    "Unstorable",
    "canonical_object",
    "parse",
    "parse_line",
    "write",
]

MAX_BYTES = 1024 * 1024
"""Bytes of a metadata text, as sent and in canonical spelling (api.md)."""

MAX_DEPTH = 200
"""Levels of nesting: far from where Python's recursion limit (1000 frames) would end us."""

_TOO_LARGE_IN_FULL = f"is larger than {MAX_BYTES:,} bytes when written out in full"

_MAY_GROW = re.compile("[0-9][eE][+-]?[0-9]{3}")
"""What a number contains that stands for hundreds of digits; other texts may as well."""


def canonical_object(text: str) -> str:
    """Return the canonical text of the JSON object in ``text``; empty means ``{}``.

    Raises:
        JsonTextError: It is not valid JSON, not an object, too large, too deep,
            repeats a key, or holds a value that JSONB cannot (U+0000, lone
            surrogates, NaN, Infinity, numbers out of range).

    """
    if not text or text == "{}":
        return "{}"
    value = parse(text)
    if not isinstance(value, dict):
        raise JsonTextError(f"must be a JSON object, is {_kind(value)}")
    return write(value)


def parse(text: str) -> Any:
    """Read ``text`` into dicts, lists, strings, booleans, None and number texts.

    _Numbers come as strings of a private type, so that no digit is lost.

    Raises:
        JsonTextError: As in ``canonical_object``.

    """
    if len(text) > MAX_BYTES or (not text.isascii() and _utf8_length(text) > MAX_BYTES):
        raise JsonTextError(f"is larger than {MAX_BYTES:,} bytes")
    try:
        value = _decoder(text).decode(text)
    except JsonTextError:
        raise
    except RecursionError:
        raise JsonTextError(f"is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as exc:
        raise JsonTextError(f"is not valid JSON: {exc.msg} at character {exc.pos}") from None
    return value


def write(value: Any) -> str:
    """Return the canonical text of a value that ``parse`` made.

    Raises:
        JsonTextError: It is too large or too deep, or a string holds U+0000 or a
            lone surrogate.

    """
    text = _text(value, 1)
    if len(text) > MAX_BYTES or _utf8_length(text) > MAX_BYTES:
        raise JsonTextError(_TOO_LARGE_IN_FULL)
    return text


def _utf8_length(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise JsonTextError("holds a lone surrogate, which is not a character") from None


def _kind(value: Any) -> str:
    if isinstance(value, Number):
        return "a number"
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names[type(value)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonTextError(f"repeats the key {_shortened(repeated)}; JSONB would keep only one")
    return result


def _shortened(text: str) -> str:
    shown = text if len(text) <= 40 else text[:40] + "…"
    return json.dumps(shown)


def _constant(name: str) -> NoReturn:
    raise JsonTextError(f"holds {name}, which is not a JSON number")


def _ordered(keys: Iterable[str]) -> list[str]:
    """Return keys as JSONB orders them: by the number of their bytes, then by these."""
    if "".join(keys).isascii():
        return sorted(sorted(keys), key=len)
    return sorted(keys, key=_by_bytes)


def _by_bytes(key: str) -> tuple[int, bytes]:
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        raise JsonTextError("holds a lone surrogate, which is not a character") from None
    return len(encoded), encoded


class _Numbers:
    """Reads the numbers of one text, up to so much of their digits.

    ``1e99999`` is seven characters that stand for a hundred thousand.
    """

    def __init__(self) -> None:
        self._room = MAX_BYTES

    def real(self, text: str) -> Number:
        """As ``canonical_real``."""
        number = canonical_real(text)
        self._room -= len(number)
        if self._room < 0:
            raise JsonTextError(_TOO_LARGE_IN_FULL)
        return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=canonical_real,
    parse_int=canonical_integer,
    parse_constant=_constant,
)


def _decoder(text: str) -> json.JSONDecoder:
    if _MAY_GROW.search(text) is None:
        return _DECODER
    return json.JSONDecoder(
        object_pairs_hook=_object,
        parse_float=_Numbers().real,
        parse_int=canonical_integer,
        parse_constant=_constant,
    )


class Unstorable:
    """A value of `parse_line` that no store can hold, with the reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _deferred(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return ``read`` with its errors as values."""

    def attempt(part: Any) -> Any:
        try:
            return read(part)
        except JsonTextError as exc:
            return Unstorable(str(exc))

    return attempt


def _line_decoder(real: Callable[[str], Number]) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_deferred(_object),
        parse_float=_deferred(real),
        parse_int=_deferred(canonical_integer),
        parse_constant=_deferred(_constant),
    )


_LINE_DECODER = _line_decoder(canonical_real)


def parse_line(text: str) -> Any:
    """Read a line of JSON Lines as ``parse`` does, without its limits of size and depth.

    A value that no store can hold (a number out of range, NaN, an object that repeats a key)
    does not fail the line: ``write`` raises its reason, so it counts against its field only.

    Raises:
        JsonTextError: It is not JSON, or its outermost object repeats a key.

    """
    decoder = _LINE_DECODER
    if _MAY_GROW.search(text) is not None:
        decoder = _line_decoder(_Numbers().real)
    try:
        value = decoder.decode(text)
    except RecursionError:
        raise JsonTextError("is nested too deeply") from None
    except json.JSONDecodeError as exc:
        raise JsonTextError(f"is not JSON: {exc.msg} at character {exc.pos:,}") from None
    if isinstance(value, Unstorable):
        raise JsonTextError(value.reason)
    return value


def _text(value: Any, depth: int) -> str:
    """Return the canonical text of a value at a depth of nesting."""
    kind = type(value)
    if kind is str:
        return _string(value)
    if kind is dict or kind is list:
        if depth > MAX_DEPTH:
            raise JsonTextError(f"is nested deeper than {MAX_DEPTH} levels")
        depth += 1
        if kind is list:
            return "[" + ", ".join([_text(item, depth) for item in value]) + "]"
        members = [f"{_string(key)}: {_text(value[key], depth)}" for key in _ordered(value)]
        return "{" + ", ".join(members) + "}"
    if kind is Number:
        return value  # type: ignore[no-any-return]
    if kind is Unstorable:
        raise JsonTextError(value.reason)
    return "null" if value is None else "true" if value else "false"


def _string(value: str) -> str:
    if "\x00" in value:
        raise JsonTextError("holds U+0000, which PostgreSQL cannot store")
    return _quoted(value)
