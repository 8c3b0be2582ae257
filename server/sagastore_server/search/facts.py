"""Tokens for tags and metadata, so that a word index finds them too.

Each tag and each scalar of the metadata becomes a short hash. A query asks for the
hashes of what it wants, and the backend checks the candidates exactly: a hash says
where a value stands only up to the positions in arrays, as PostgreSQL's
``jsonb_path_ops`` does, and could collide.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from sagastore_server.storage.jsontext import comparable, parse

MAX_FACTS = 1000
"""Scalars of one metadata that are indexed; more count as OVERFLOW."""

OVERFLOW = "overflow"
"""Stands for all of a metadata with too many scalars: such a row is always a candidate."""


@lru_cache(maxsize=1 << 14)
def tag_fact(tag: str) -> str:
    """Return the token of a tag."""
    return _hash(b"t" + tag.encode())


def metadata_facts(metadata: str) -> list[str]:
    """Return the distinct tokens of a metadata's scalars, or [OVERFLOW] for too many."""
    if metadata == "{}":
        return []
    facts: dict[str, None] = {}
    for path, value in _scalars(parse(metadata), b"m"):
        facts[_hash(path + b"\x00" + value)] = None
        if len(facts) > MAX_FACTS:
            return [OVERFLOW]
    return list(facts)


def _scalars(value: Any, path: bytes) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _scalars(item, path + b"\x00" + key.encode())
    elif isinstance(value, list):
        for item in value:
            yield from _scalars(item, path)
    else:
        yield path, comparable(value).encode()


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()
