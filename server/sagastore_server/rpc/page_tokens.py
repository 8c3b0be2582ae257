"""Page and resume tokens: a cursor in a result, bound to the request that it belongs to.

A token is base64url of a version byte, a BLAKE2b digest, and the cursor as a JSON list. The
digest covers the cursor and the fields of the request, except the page size and the token. A
token that was altered, or that is sent with another request, is rejected.

A token may also hold the position in PostgreSQL's log at which its page was read
(`interfaces.consistency`), under another version byte.

Tokens are not signed, because a token grants no access: a caller that can forge one can request
the same page without it. Therefore tokens survive restarts, and are valid on every server and in
every phase of a migration.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from sagastore_server.interfaces.consistency import WalPosition, decoded
from sagastore_server.storage.errors import InvalidRequestError, Violation
from sagastore_server.storage.validation import unstorable

Scalar = int | float | str | None


class Token(NamedTuple):
    """Contents of a token."""

    cursor: tuple[Scalar, ...]
    """The position in the result."""
    position: WalPosition | None
    """The position of the page in PostgreSQL's log; None: not known."""


_VERSION = b"\x02"
_LOCATED_VERSION = b"\x03"
"""Version of tokens with the position of the page, in its text form, before the JSON list."""
_LOCATED_CHARACTERS = 28
_FORMER_VERSIONS = (b"\x01",)
"""Version 1 held ids where version 2 holds sequences; the two orders differ."""

_DIGEST_BYTES = 16
_MAX_CHARACTERS = 8192
"""Far longer than any token of this module."""
_INT64 = 1 << 63


def request_key(method: str, *fields: object) -> bytes:
    """Return the key that identifies a request.

    ``fields`` are its normalized values in a fixed order, as JSON values, so that two spellings
    of a request (white space in a JSON filter) have the same key.
    """
    return json.dumps([method, *fields], separators=(",", ":")).encode()


def encode(key: bytes, cursor: Sequence[Scalar], position: WalPosition | None = None) -> str:
    """Return the token of ``cursor`` in the request of ``key``.

    ``position`` is that of the page, to be kept with it.
    """
    text = json.dumps(cursor, separators=(",", ":"), ensure_ascii=False).encode()
    version = _VERSION
    if position is not None:
        version, text = _LOCATED_VERSION, position.encoded().encode() + text
    return base64.urlsafe_b64encode(version + _digest(key, text) + text).decode().rstrip("=")


def decode(
    key: bytes,
    token: str,
    field: str,
    shape: tuple[type, ...] | None = None,
) -> Token:
    """Return the contents of ``token``.

    Args:
        key: The ``request_key`` of the request that holds the token.
        token: The token, not empty.
        field: The request's field, for the violation.
        shape: Types of the cursor's items; None: any scalars.

    Raises:
        InvalidRequestError: The token is not valid for this request.

    """
    version, text = _payload(key, token, field)
    position = None
    try:
        if version == _LOCATED_VERSION:
            position = decoded(text[:_LOCATED_CHARACTERS].decode())
            text = text[_LOCATED_CHARACTERS:]
        cursor = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        reject(field)
    if not isinstance(cursor, list) or not all(map(_is_scalar, cursor)):
        reject(field)
    if shape is not None and tuple(map(type, cursor)) != shape:
        reject(field)
    return Token(tuple(cursor), position)


def _payload(key: bytes, token: str, field: str) -> tuple[bytes, bytes]:
    """Return the version and the text of a token that belongs to the request of ``key``."""
    if len(token) > _MAX_CHARACTERS:
        reject(field)
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        reject(field)
    version = raw[:1]
    if version in _FORMER_VERSIONS:
        _reject_former(field)
    digest, text = raw[1 : 1 + _DIGEST_BYTES], raw[1 + _DIGEST_BYTES :]
    # The last character of base64 has spare bits; only the spelling of encode() is valid.
    spelling = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    is_known = version in {_VERSION, _LOCATED_VERSION}
    if not is_known or digest != _digest(key, text) or spelling != token:
        reject(field)
    return version, text


def _digest(key: bytes, text: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES, person=b"sagastore.token")
    digest.update(len(key).to_bytes(8, "big"))
    digest.update(key)
    digest.update(text)
    return digest.digest()


def _is_scalar(value: object) -> bool:
    """Return whether a store accepts ``value``; a forged token may hold anything."""
    if type(value) is str:
        return unstorable(value) is None
    if type(value) is int:
        return -_INT64 <= value < _INT64
    return value is None or (type(value) is float and math.isfinite(value))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _reject_former(field: str) -> NoReturn:
    reason = (
        "is a token of an earlier version of SagaStore, which listed in another order; leave it "
        "empty to start over"
    )
    raise InvalidRequestError((Violation(field, reason),)) from None


def reject(field: str) -> NoReturn:
    """Reject the token in ``field``.

    Raises:
        InvalidRequestError: Always.

    """
    reason = (
        "is not a token of this request; send it unchanged with the fields of the request "
        "that returned it, or leave it empty to start over"
    )
    raise InvalidRequestError((Violation(field, reason),)) from None
