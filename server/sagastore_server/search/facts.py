"""Tokens for tags and metadata, so that a word index finds them too.

Each tag and each scalar of the metadata becomes a short hash. A query asks for the
hashes of what it wants, and the backend checks the candidates exactly: a hash says
where a value stands only up to the positions in arrays, as PostgreSQL's
``jsonb_path_ops`` does, and could collide.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any

from sagastore_server.storage.canonical_json import comparable, read

MAX_FACTS = 1000
"""Scalars of one metadata that are indexed; more count as OVERFLOW."""

OVERFLOW = "overflow"
"""Stands for all of a metadata with too many scalars: such a row is always a candidate."""

_SHORT = 100
"""Bytes of what is worth to be remembered with its hash: values that come again are short."""


def tag_fact(tag: str) -> str:
    """Return the token of a tag."""
    return _hash(b"t" + tag.encode())


def metadata_facts(metadata: str) -> list[str]:
    """Return the distinct tokens of a metadata's scalars, or [OVERFLOW] for too many."""
    if metadata == "{}":
        return []
    scalars: dict[bytes, None] = {}
    try:
        _collect(read(metadata), b"m", scalars)
    except _TooManyError:
        return [OVERFLOW]
    return list(dict.fromkeys(map(_hash, scalars)))


class _TooManyError(Exception):
    """A metadata has more than MAX_FACTS different scalars; a large one may have 300,000."""


def _collect(value: Any, path: bytes, scalars: dict[bytes, None]) -> None:
    """Add what tells each scalar of ``value`` from others: where it stands, and what it is."""
    if isinstance(value, dict):
        for key, item in value.items():
            place = path + b"\x00" + key.encode()
            if isinstance(item, dict | list):
                _collect(item, place, scalars)
            else:
                scalars[place + b"\x00" + comparable(item).encode()] = None
    elif isinstance(value, list):
        for item in value:
            _collect(item, path, scalars)
    else:
        scalars[path + b"\x00" + comparable(value).encode()] = None
    if len(scalars) > MAX_FACTS:
        raise _TooManyError


def _hash(data: bytes) -> str:
    return _hash_of_short(data) if len(data) <= _SHORT else _hash_of(data)


def _hash_of(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()


_hash_of_short = lru_cache(maxsize=1 << 14)(_hash_of)
