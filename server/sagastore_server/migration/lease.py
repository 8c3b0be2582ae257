"""LeaseGuard: whether this server may still serve, as far as it knows of its lease.

The target holds the lease (`postgresql/lease.py`): every transaction proves it, and no other
server can write while it is held. What this server acknowledges from SQLite alone is not
covered by that, so it has to stop as soon as it learns, or has to fear, that another server
took over. Three states:

- *holding*: the last answer of the target proved the lease, or the target is unavailable;
- *contested*: another server holds the lease, or this process stood still for as long as a
  lease lasts. Calls are refused as unavailable until the target has answered;
- *fenced*: another server has taken over. Final.
"""

from __future__ import annotations

from sagastore_server.storage.environment import Clock
from sagastore_server.storage.errors import Blocker, FencedError, UnavailableError

LEASE_WITHIN = 15.0
"""Seconds to wait for the lease of another server to run out: longer than one lasts
(postgresql/lease.py), so that a server which is alive is told from one that is gone."""

PAUSED = 5.0
"""Seconds after which this process counts as having stood still: half of what a lease lasts
(postgresql/lease.py), so that no other server can take over unnoticed."""

TAKEN_OVER = "another server has taken over this migration; stop this one"


class LeaseGuard:
    """Tells whether calls may be answered. Belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        """Begin as a server that has neither held nor lost a lease."""
        self._clock = clock
        self.fenced = False
        """Another server has taken the target: this one must not write any more."""
        self.contested: Blocker | None = None
        """Why the lease has to be proved before anything is served; None: it has not."""
        self.held = False
        """Whether this server has held the lease since it began to follow."""
        self._contested_at = 0.0
        self._beat_at: float | None = None
        """When the event loop last turned, as far as it is watched; None: it is not."""

    def check(self, *, attached: bool) -> None:
        """Refuse to serve what another server goes on with, or may have taken over.

        Raises:
            FencedError: Another server has taken over, for certain.
            UnavailableError: It is not known yet.

        """
        self.beat(attached=attached)
        if self.fenced:
            raise FencedError(TAKEN_OVER)
        if self.contested is not None:
            raise UnavailableError(self.contested.detail)

    def watch(self) -> None:
        """Begin to notice when the process stands still; ``beat`` has to follow often."""
        self._beat_at = self._clock.monotonic()

    def beat(self, *, attached: bool) -> None:
        """Note that the event loop turns, and contest the lease if it stood still for long.

        A target that is not attached proves nothing either way: SQLite serves alone then,
        before such a pause and after it.
        """
        if self._beat_at is None:
            return
        now = self._clock.monotonic()
        paused, self._beat_at = now - self._beat_at, now
        if paused > PAUSED and attached:
            line = (
                f"this server stood still for {paused:.1f} s and has to ask PostgreSQL whether "
                "another one has taken over meanwhile; try again"
            )
            self.contest(Blocker("LEASE_NOT_PROVED", line))

    def prove(self, asked_at: float) -> None:
        """Note that the target has answered a question of ``asked_at`` that proves the lease."""
        self.held = True
        if asked_at >= self._contested_at:
            self.contested = None

    def waits_for(self, held_by_another: Blocker) -> bool:
        """Tell whether the lease of another server is waited for, as that of one that is gone.

        A server that has held the lease itself does not wait: it was taken from it.
        """
        self.contest(held_by_another)
        return not self.held and self._clock.monotonic() - self._contested_at <= LEASE_WITHIN

    def stop(self) -> None:
        """Forget everything but that another server has taken over."""
        self.contested, self.held, self._beat_at = None, False, None

    def contest(self, blocker: Blocker) -> None:
        """Serve nothing until the lease is proved."""
        if self.contested is None:
            self._contested_at = self._clock.monotonic()
        self.contested = blocker
