"""Page and resume tokens: where to go on, bound to the request they came from.

A token is base64url of: one byte of version, a BLAKE2b digest, and the place as
a JSON list. The digest covers the place and the request's fields (all but the
page size and the token itself), so a token that was altered, or that comes with
another request, is refused.

There is no server secret in it, because a token grants nothing: whoever could
forge one can ask for the same page by name. So tokens outlive restarts, hold on
every server, and hold in every phase of a migration.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Sequence
from typing import NoReturn

from sagastore_server.storage.errors import InvalidRequestError, Violation
from sagastore_server.storage.validation import unstorable

Scalar = int | float | str | None

_VERSION = b"\x01"
_DIGEST_BYTES = 16
_MAX_CHARACTERS = 8192
"""Far above any token made here: a place holds two ids at most, of 128 characters."""
_INT64 = 1 << 63


def request_key(method: str, *fields: object) -> bytes:
    """Return what a request is told apart by.

    ``fields`` are its normalized values, JSON-able, in a fixed order; two
    spellings of the same request (white space in a JSON filter) are one request.
    """
    return json.dumps([method, *fields], separators=(",", ":")).encode()


def seal(key: bytes, place: Sequence[Scalar]) -> str:
    """Return the token that stands for ``place`` in the request of ``key``."""
    text = json.dumps(place, separators=(",", ":"), ensure_ascii=False).encode()
    return base64.urlsafe_b64encode(_VERSION + _digest(key, text) + text).decode().rstrip("=")


def unseal(
    key: bytes,
    token: str,
    field: str,
    shape: tuple[type, ...] | None = None,
) -> tuple[Scalar, ...]:
    """Return the place that ``token`` stands for.

    Args:
        key: The ``request_key`` of the request that it came with.
        token: The token, not empty.
        field: The request's field, for the violation.
        shape: The types that the place must have; None: any scalars.

    Raises:
        InvalidRequestError: It is no token of this request.

    """
    text = _payload(key, token, field)
    try:
        place = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        refuse(field)
    if not isinstance(place, list) or not all(map(_is_scalar, place)):
        refuse(field)
    if shape is not None and tuple(map(type, place)) != shape:
        refuse(field)
    return tuple(place)


def _payload(key: bytes, token: str, field: str) -> bytes:
    if len(token) > _MAX_CHARACTERS:
        refuse(field)
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        refuse(field)
    digest, text = raw[1 : 1 + _DIGEST_BYTES], raw[1 + _DIGEST_BYTES :]
    # The last character of base64 has spare bits: only the spelling that seal() makes counts.
    spelling = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    if raw[:1] != _VERSION or digest != _digest(key, text) or spelling != token:
        refuse(field)
    return text


def _digest(key: bytes, text: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES, person=b"sagastore.token")
    digest.update(len(key).to_bytes(8, "big"))
    digest.update(key)
    digest.update(text)
    return digest.digest()


def _is_scalar(value: object) -> bool:
    """Tell whether a store could meet ``value`` without harm, should somebody forge a token."""
    if type(value) is str:
        return unstorable(value) is None
    if type(value) is int:
        return -_INT64 <= value < _INT64
    return value is None or (type(value) is float and math.isfinite(value))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def refuse(field: str) -> NoReturn:
    """Refuse the token in ``field``.

    Raises:
        InvalidRequestError: Always.

    """
    reason = (
        "is not a token of this request: send it unchanged, with the fields of the "
        "request that it came from, or leave it empty to begin again"
    )
    raise InvalidRequestError((Violation(field, reason),)) from None
