"""Server lifecycle: whether calls are accepted, and how many are in progress.

The states follow each other: STARTING, ACCEPTING, DRAINING.
"""

from __future__ import annotations

import asyncio
import enum

from sagastore_server.storage.errors import UnavailableError


class ServerStartingError(UnavailableError):
    """The server listens, but its storage is not open yet."""

    reason = "SERVER_STARTING"


class ServerDrainingError(UnavailableError):
    """The server is shutting down and accepts no new calls."""

    reason = "SERVER_DRAINING"


class LifecycleState(enum.Enum):
    """State of the server; only ACCEPTING accepts calls."""

    STARTING = "starting"
    ACCEPTING = "accepting"
    DRAINING = "draining"


class Lifecycle:
    """State of the server and the number of its calls in progress.

    Belongs to one event loop. Health checks and reflection have a lifecycle of their own, which
    always accepts.
    """

    def __init__(self) -> None:
        """Create it in the state STARTING."""
        self.state = LifecycleState.STARTING
        self.in_flight = 0
        """Calls in progress that a drain waits for."""
        self.draining = asyncio.Event()
        """Set when a drain begins: streams without an end must end now."""
        self.end_streams = asyncio.Event()
        """Set halfway through a drain: streams must end after their current batch."""
        self._idle = asyncio.Event()

    def start_accepting(self) -> None:
        """Accept calls from now on."""
        self.state = LifecycleState.ACCEPTING

    def check(self) -> None:
        """Check that calls are accepted, without counting one.

        Raises:
            ServerStartingError, ServerDrainingError: As ``enter``.

        """
        if self.state is not LifecycleState.ACCEPTING:
            raise self.refusal()

    def enter(self) -> None:
        """Count a call that begins.

        Raises:
            ServerStartingError: The storage is not open yet.
            ServerDrainingError: The server is shutting down.

        """
        self.check()
        self.in_flight += 1

    def leave(self) -> None:
        """Count the end of a call; call it once for each ``enter`` that returned."""
        self.in_flight -= 1
        if not self.in_flight and self.state is LifecycleState.DRAINING:
            self._idle.set()

    def refusal(self) -> UnavailableError:
        """Return the error for a call that the current state does not accept."""
        if self.state is LifecycleState.STARTING:
            return ServerStartingError("the server is starting; retry in a moment")
        return ServerDrainingError("the server is shutting down; retry, or use another server")

    async def drain(self, grace: float) -> bool:
        """Accept no more calls, and wait until those in progress have ended.

        Streams may continue for half of ``grace`` (seconds). Then they end after their current
        batch, from which a client can resume; unary calls have the other half.

        Returns:
            False if calls are still in progress after ``grace``.

        """
        self.state = LifecycleState.DRAINING
        self.draining.set()
        if not self.in_flight:
            return True
        if await self._idle_within(grace / 2):
            return True
        self.end_streams.set()
        return await self._idle_within(grace / 2)

    async def _idle_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True
