"""Size limit of a request by method: what a valid request of the method needs, with reserve.

gRPC knows one limit for every method, ``max_request_bytes``. It refuses a message whose length
prefix exceeds that before it receives the rest. A smaller limit is applied here when a message
has arrived, before it is parsed.
"""

from __future__ import annotations

from google.protobuf.descriptor import MethodDescriptor

KIB = 1024
MIB = 1024 * KIB

PROBE_BYTES = 8 * KIB
"""Limit of health and reflection, which serve callers without credentials. The longest valid
request is the name of a symbol."""

_DEFAULT = 64 * KIB
"""Limit of methods whose requests hold an id, a token or a few numbers. An id takes at most 512
bytes and a token 8 KiB; longer ones are refused by name up to this limit."""

_BATCHES = frozenset({"BulkSave", "BatchSave", "Append"})
"""Methods whose requests are limited by ``max_request_bytes`` alone."""

_LIMITS = {
    # One message (storage.limits.LARGEST_MESSAGE, 6 MiB) or file record (4.6 MiB).
    "Save": 8 * MIB,
    "SaveFile": 8 * MIB,
    # A query of 100,000 characters, 0.5 MiB of tags and 1 MiB of metadata.
    "Search": 4 * MIB,
    "ListFiles": MIB,
    "ListSessions": 2 * MIB,
    "UpdateSession": 2 * MIB,
    # 1000 ids of 128 characters, up to four bytes each.
    "BatchGet": MIB,
}


def request_limit(method: MethodDescriptor, max_request_bytes: int) -> int:
    """Return the largest request of ``method`` in bytes."""
    if not method.full_name.startswith("sagastore."):
        return PROBE_BYTES
    if method.name in _BATCHES:
        return max_request_bytes
    return min(max_request_bytes, _LIMITS.get(method.name, _DEFAULT))
