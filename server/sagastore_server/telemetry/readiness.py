"""Why the server serves or does not: what ``/readyz``, ``/livez`` and ``status`` tell.

*Live* means that the event loop goes round; a process whose loop does not must be ended.
*Ready* means that calls are taken and the store they need answers; a server that is not
ready says why, and what to do. *Warnings* are what somebody should see to although calls are
served: a disk that is full still answers reads, and another server would not write either.

Written on the event loop, read from any thread: every value is replaced as a whole.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from sagastore_server.storage.migration import StatusSnapshot
from sagastore_server.storage.model import StoreHealth

LIVE_WITHIN = 10.0
"""Seconds within which the event loop must have gone round. Nothing of ours holds it for
more than a few hundredths of a second; a machine that swaps may."""

FULL_BELOW = 64 * 1024 * 1024
"""Bytes left on the disk of the SQLite file below which it is as good as full: about what its
write-ahead log takes."""


class Reason(enum.Enum):
    """Why the server is not ready."""

    STARTING = "STARTING"
    DRAINING = "DRAINING"
    UNRESPONSIVE = "UNRESPONSIVE"
    STORE_DOWN = "STORE_DOWN"
    NOT_THE_HOLDER = "NOT_THE_HOLDER"


class Notice(enum.Enum):
    """What somebody should see to while the server serves."""

    DISK_FULL = "DISK_FULL"
    FALLBACK = "FALLBACK"
    NOT_FOLLOWING = "NOT_FOLLOWING"
    BACKFILL_FAILING = "BACKFILL_FAILING"


class Finding(NamedTuple):
    """A reason, or a warning."""

    reason: str
    detail: str
    """What is the case, in one line."""
    remedy: str
    """What to do."""


class LoopProgress(NamedTuple):
    """How far work is that has to be done before the server can serve."""

    work: str
    done: int
    total: int


class Readiness:
    """What is known of whether the server serves."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin as a server that starts now."""
        self._clock = clock
        self._beat = clock()
        self._opening: LoopProgress | None = LoopProgress("", 0, 0)
        self._draining: Callable[[], int] | None = None
        self._drain_until = 0.0
        self._store: StoreHealth | None = None
        self._glance: StatusSnapshot | None = None
        self._free: int | None = None

    # ------------------------------------------------------------------ what is told

    def beat(self) -> None:
        """Note that the event loop goes round."""
        self._beat = self._clock()

    def progress(self, what: str, done: int, total: int) -> None:
        """Note how far opening is; from any thread."""
        if self._opening is not None:
            self._opening = LoopProgress(what, done, total)

    def opened(self) -> None:
        """Note that calls are taken from now on."""
        self._opening = None

    def draining(self, seconds: float, calls: Callable[[], int]) -> None:
        """Note that no new calls are taken; ``calls`` are under way, and have ``seconds``."""
        self._drain_until = self._clock() + seconds
        self._draining = calls

    def store(self, health: StoreHealth) -> None:
        """Note how the store does without which nothing can be served."""
        self._store = health

    def snapshot(self, snapshot: StatusSnapshot) -> None:
        """Note where the migration stands."""
        self._glance = snapshot

    def disk(self, free: int | None) -> None:
        """Note how many bytes are left beside the SQLite file; None: there is none."""
        self._free = free

    # ------------------------------------------------------------------ what it comes to

    @property
    def silence(self) -> float:
        """Seconds since the event loop last went round."""
        return max(0.0, self._clock() - self._beat)

    @property
    def live(self) -> bool:
        """Whether the event loop goes round."""
        return self.silence <= LIVE_WITHIN

    def reasons(self) -> list[Finding]:
        """Return why the server is not ready; nothing: it is."""
        found: list[Finding] = []
        if not self.live:
            found.append(_unresponsive(self.silence))
        if self._draining is not None:
            left = max(0.0, self._drain_until - self._clock())
            found.append(_draining(self._draining(), left))
        elif self._opening is not None:
            found.append(_starting(self._opening))
        elif self._glance is not None and self._glance.taken_over:
            found.append(_not_the_holder())
        elif self._store is not None and not self._store.healthy:
            found.append(_store_down(self._store))
        return found

    def warnings(self) -> list[Finding]:
        """Return what somebody should see to."""
        found = []
        snapshot = self._glance
        if self._free is not None and self._free < FULL_BELOW:
            found.append(_disk_full(self._free))
        if snapshot is not None and not snapshot.taken_over:
            found += _of_migration(snapshot)
        return found

    def document(self) -> dict[str, Any]:
        """Return all of it, for ``/readyz``."""
        reasons = self.reasons()
        snapshot = self._glance
        return {
            "ready": not reasons,
            "phase": None if snapshot is None else snapshot.phase.slug,
            "reasons": [finding._asdict() for finding in reasons],
            "warnings": [finding._asdict() for finding in self.warnings()],
            "progress": None if not self._opening else self._opening._asdict(),
        }


def _unresponsive(silence: float) -> Finding:
    return Finding(
        Reason.UNRESPONSIVE.value,
        f"the event loop has not gone round for {silence:.1f} s",
        "see whether the machine swaps or has no processor left; if it stays so, restart the "
        "server, and report it with a stack of the process",
    )


def _starting(progress: LoopProgress) -> Finding:
    detail = "the server is opening its store"
    if progress.work:
        share = f": {progress.done:,} of {progress.total:,}" if progress.total else ""
        detail += f"; {progress.work}{share}"
    return Finding(Reason.STARTING.value, detail, "wait; it becomes ready by itself")


def _draining(calls: int, left: float) -> Finding:
    return Finding(
        Reason.DRAINING.value,
        f"the server is stopping; {calls:,} calls under way have up to {left:.0f} s",
        "nothing; send calls to another server, or start this one again when it has ended",
    )


def _not_the_holder() -> Finding:
    return Finding(
        Reason.NOT_THE_HOLDER.value,
        "another server has taken over this migration, and this one must not serve any more",
        "stop this server; send calls to the other one",
    )


def _store_down(health: StoreHealth) -> Finding:
    name = "PostgreSQL" if health.store.value == "postgresql" else "the SQLite file"
    return Finding(
        Reason.STORE_DOWN.value,
        f"{name} does not answer: {health.detail}",
        "see that it runs and can be reached; the server becomes ready by itself then",
    )


def _disk_full(free: int) -> Finding:
    return Finding(
        Notice.DISK_FULL.value,
        f"{free / 1024 / 1024:,.0f} MiB are left on the disk of the SQLite file; writes are "
        "refused when there is no more, reads go on",
        "make room on that disk; writes go on by themselves then",
    )


def _of_migration(snapshot: StatusSnapshot) -> list[Finding]:
    found = []
    if snapshot.reads_from_fallback:
        found.append(
            Finding(
                Notice.FALLBACK.value,
                "PostgreSQL is down or behind, so SQLite answers reads",
                "see that PostgreSQL runs; it catches up and takes over by itself",
            )
        )
    if snapshot.trouble is not None:
        found.append(
            Finding(
                Notice.NOT_FOLLOWING.value,
                f"PostgreSQL does not follow: {snapshot.trouble.detail}",
                "nothing is lost, the journal keeps every change; see sagastore migrate status",
            )
        )
    if snapshot.backfill.error:
        found.append(
            Finding(
                Notice.BACKFILL_FAILING.value,
                f"the backfill is tried again and again: {snapshot.backfill.error}",
                "see sagastore migrate status",
            )
        )
    return found
