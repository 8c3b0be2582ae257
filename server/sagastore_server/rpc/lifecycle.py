"""Who may come in: whether calls are taken, and how many are under way."""

from __future__ import annotations

import asyncio
import enum

from sagastore_server.storage.errors import UnavailableError


class ServerStartingError(UnavailableError):
    """The server is up, its storage is not open yet."""

    reason = "SERVER_STARTING"


class ServerDrainingError(UnavailableError):
    """The server is shutting down and takes no new work."""

    reason = "SERVER_DRAINING"


class LifecycleState(enum.Enum):
    """What the gate does with a new call."""

    STARTING = "starting"
    OPEN = "open"
    DRAINING = "draining"


class Lifecycle:
    """Lets calls in while the server serves, and knows when the last one has left.

    Belongs to one event loop. Health checks and reflection do not pass it.
    """

    def __init__(self) -> None:
        """Begin closed, in STARTING."""
        self.state = LifecycleState.STARTING
        self.in_flight = 0
        self.draining = asyncio.Event()
        """Set when a drain begins: what would never end by itself must end now."""
        self.end_streams = asyncio.Event()
        """Set when streams must end at their next batch, in the later part of a drain."""
        self._idle = asyncio.Event()

    def open(self) -> None:
        """Let calls in from now on."""
        self.state = LifecycleState.OPEN

    def check(self) -> None:
        """Let a call in that the drain does not wait for.

        Raises:
            ServerStartingError, ServerDrainingError: As ``enter``.

        """
        if self.state is not LifecycleState.OPEN:
            raise self.refusal()

    def enter(self) -> None:
        """Count a call in.

        Raises:
            ServerStartingError: The storage is not open yet.
            ServerDrainingError: The server is shutting down.

        """
        self.check()
        self.in_flight += 1

    def leave(self) -> None:
        """Count a call out; once for each ``enter`` that returned."""
        self.in_flight -= 1
        if not self.in_flight and self.state is LifecycleState.DRAINING:
            self._idle.set()

    def refusal(self) -> UnavailableError:
        """Return the error that a call which cannot be served now gets."""
        if self.state is LifecycleState.STARTING:
            return ServerStartingError("the server is starting; try again in a moment")
        return ServerDrainingError(
            "the server is shutting down; try again, at another server or in a moment"
        )

    async def drain(self, grace: float) -> bool:
        """Close the gate and wait until the calls inside have left.

        For half of ``grace`` (seconds) streams may go on; then they end at their
        next batch, which a client can continue, and single calls have the rest.

        Returns:
            False when calls were still under way at the end.

        """
        self.state = LifecycleState.DRAINING
        self.draining.set()
        if not self.in_flight:
            return True
        if not await self._left_within(grace / 2):
            self.end_streams.set()
            return await self._left_within(grace / 2)
        return True

    async def _left_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True
