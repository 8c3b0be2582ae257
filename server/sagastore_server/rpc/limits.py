"""How much the server takes on."""

from __future__ import annotations

from typing import NamedTuple

MIB = 1024 * 1024


class Limits(NamedTuple):
    """Bounds of what callers may ask for; the settings of the same names say more."""

    max_request_bytes: int = 32 * MIB
    """The largest request. gRPC itself refuses a larger one before it is in memory, with
    RESOURCE_EXHAUSTED and this number. A batch of 1000 real messages takes about 0.4 MiB;
    messages of the greatest size allowed (1.2 MB each) fit about 25 to a batch."""
    max_calls: int = 512
    """Single calls at a time."""
    max_streams: int = 64
    """Streams at a time."""
    caller_rate: float = 0.0
    """Calls and batches a second of one caller; 0: any number."""
    search_timeout: float = 10.0
    """Seconds that a search may take."""
    stall_timeout: float = 300.0
    """Seconds that a client may leave an answer of a stream unread."""
    connection_age: float = 3600.0
    """Seconds after which a client is asked to connect anew; 0: never."""
    max_connections: int = 1000
    """Connections at a time; more are closed as they come."""
