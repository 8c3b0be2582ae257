"""Definition of attacks over a socket: what is sent, its caps, and the expectation."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tools.attacks.loopback import Address, require_loopback

if TYPE_CHECKING:
    from tools.attacks.service import Service

MB = 1_000_000
MAX_SECONDS = 600.0
"""Longest duration of an attack."""

GROWTH = 100.0
"""Megabytes by which the resident memory of the server may grow during an attack by a caller
without a token."""
RESIDUE = 20.0
"""Megabytes that may remain `SETTLE` seconds after the end of the attack."""
SETTLE = 30.0
"""Seconds until memory must be released."""
SLOWDOWN = 5.0
"""Largest ratio of the p99 of an authenticated caller during the attack to its idle p99."""
SHED = 0.05
"""Largest share of the calls of other callers that may be refused with RESOURCE_EXHAUSTED: load
shedding reacts to samples, so a burst can shed a few."""
LOG_RATE = 1000.0
"""Bytes per second that one source may add to the log."""
QUEUED_GROWTH = 140.0
"""Megabytes by which the server may grow if a source opens many streams on many connections: gRPC
queues up to 8,192 calls of about 14 KiB before the server sees them, which it cannot limit by
source. `deploy/nginx` limits the streams of a source."""
UNREAD_GROWTH = 2 * 256 * 1024 * 1024 / MB
"""Megabytes by which the server may grow if callers with a token do not read their answers: 256 MiB
of answers may be pending, and an answer is in memory twice while it is serialized."""


class CapReachedError(Exception):
    """The attack has sent, or opened, as much as its caps allow."""


@dataclass(frozen=True)
class Target:
    """What the attacker knows of the server."""

    rpc: Address
    ops: Address
    ca: Path
    """Certificate of the authority of the server."""
    tokens: Mapping[str, str]
    """Token by role, ``reader`` and ``writer``."""

    def __post_init__(self) -> None:
        """Refuse other machines."""
        require_loopback(self.rpc)
        require_loopback(self.ops)


@dataclass(frozen=True)
class Size:
    """How much one attack sends."""

    count: int
    """Calls, streams, connections or frames; the description of the attack says which."""
    megabytes: float
    """Cap on the bytes sent, before TLS."""
    connections: int
    """Cap on the connections opened."""


class Pace:
    """Limits and counts what an attack does. Used by the attack process."""

    def __init__(self, size: Size, seconds: float, on_ready: Callable[[], None]) -> None:
        """Allow ``size``.

        The attack lasts ``seconds`` from the call of `ready`, which calls ``on_ready``. It has as
        long again to get there.
        """
        self.count = size.count
        self.seconds = min(seconds, MAX_SECONDS)
        self._size = size
        self._ends = time.monotonic() + self.seconds
        self._on_ready: Callable[[], None] | None = on_ready
        self._stopped = asyncio.Event()
        self.sent = 0
        """Bytes sent."""
        self.connections = 0
        self.outcomes: Counter[str] = Counter()
        """Answers of the server: status codes, resets, closed connections."""

    @property
    def left(self) -> float:
        """Seconds until the end of the attack."""
        return self._ends - time.monotonic()

    def more(self) -> bool:
        """Whether time is left."""
        return self.left > 0 and not self._stopped.is_set()

    def stop(self) -> None:
        """End the attack now."""
        self._stopped.set()

    def spend(self, length: int) -> None:
        """Count bytes that are about to be sent.

        Raises:
            CapReachedError: The cap is reached.
        """
        if self.sent + length > self._size.megabytes * MB:
            raise CapReachedError(f"{self._size.megabytes:g} MB are sent")
        self.sent += length

    def connect(self) -> None:
        """Count a connection that is about to be opened.

        Raises:
            CapReachedError: The cap is reached.
        """
        if self.connections >= self._size.connections:
            raise CapReachedError(f"{self._size.connections} connections are opened")
        self.connections += 1

    def ready(self) -> None:
        """Report that the attack is in place; only the first call counts."""
        on_ready, self._on_ready = self._on_ready, None
        if on_ready is not None:
            self._ends = time.monotonic() + self.seconds
            on_ready()

    @asynccontextmanager
    async def lasting(self) -> AsyncIterator[None]:
        """Report that the attack is in place, and end the body at the end of the attack.

        A body that writes as fast as possible may wait then for a server that reads slowly.
        """
        self.ready()
        limit = asyncio.timeout(max(0.0, self.left))
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise

    async def hold(self) -> None:
        """Report that the attack is in place, and keep it until the end."""
        self.ready()
        await self.rest(self.left)

    async def rest(self, seconds: float) -> None:
        """Wait for ``seconds``, or the end of the attack if that is earlier."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(seconds, self.left))):
                await self._stopped.wait()


Run = Callable[[Target, Pace], Awaitable[None]]
Check = Callable[["Service"], list[str]]
"""Returns what is wrong with the server, one line each."""


@dataclass(frozen=True)
class Attack:
    """An attack over a socket, with its expectation."""

    name: str
    what: str
    """What is sent, in one line; it says what ``Size.count`` counts."""
    run: Run
    short: Size
    """For tests: enough that a server without the defence fails."""
    long: Size
    """For ``make attacks``."""
    seconds: float = 3.0
    """Duration of the short form."""
    growth: float = GROWTH
    """Megabytes by which the server may grow."""
    stored: int = 0
    """Bytes of the message ``LARGE`` that is stored before; 0: none."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of the server in the short form that differ from production, by variable."""
    quiet: bool = False
    """Whether the attack waits most of the time. Tests run it beside others like it, and the time
    limits of the callers beside it apply there too."""
    file_limit: int | None = None
    """Limit of open files of the server; None: that of this process."""
    meanwhile: Check | None = None
    """Runs while the attack is in place, which ends after it, or after its seconds."""
    afterwards: Check | None = None
    """Runs after the attack."""


LARGE = "large"
"""Id of the large message."""
