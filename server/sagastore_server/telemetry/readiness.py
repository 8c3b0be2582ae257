"""Readiness and liveness of the server: `/readyz`, `/livez` and `sagastore-server status`.

* *Live*: the event loop runs. A process whose event loop hangs must be restarted.
* *Ready*: the server accepts calls and the store that they need answers. A server that is not
  ready reports each reason with a remedy.
* *Warnings* need attention, but the server stays ready, because another server would do no
  better: with a full disk, for example, it still answers reads.

The event loop writes, any thread reads: every value is replaced as a whole.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sagastore_server.interfaces.forwarding import ForwardingState
from sagastore_server.interfaces.usage import Usage
from sagastore_server.runtime.supervisor import Failure, Policy
from sagastore_server.storage.load import Load, ReplicaLoad
from sagastore_server.storage.migration import StatusSnapshot
from sagastore_server.storage.model import Store, StoreHealth
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.reanalysis import Reanalysis

LIVE_WITHIN = 10.0
"""Seconds without a heartbeat after which the event loop counts as hung. The server's own code
holds it for a few hundredths of a second at most; on a machine that swaps it may take longer."""

FULL_BELOW = 64 * 1024 * 1024
"""Free bytes on the disk of the SQLite file below which it counts as full: about the size of the
write-ahead log."""


STALLED_AFTER = 3.0
"""Seconds that a commit lasts on PostgreSQL before writes count as stalled. A commit takes some
milliseconds; longer, it usually waits for a synchronous standby that is frozen or gone."""

_PRIMARY, _UNKNOWN = "PRIMARY", "UNKNOWN"
"""Values of ``ReplicaLoad.out`` (postgresql/replica.py)."""

NEAR = 0.8
"""Share of a limit above which its use is reported."""


class Reason(enum.Enum):
    """Why the server is not ready."""

    STARTING = "STARTING"
    DRAINING = "DRAINING"
    UNRESPONSIVE = "UNRESPONSIVE"
    STORE_DOWN = "STORE_DOWN"
    WRITES_STALLED = "WRITES_STALLED"
    NOT_THE_HOLDER = "NOT_THE_HOLDER"
    SERVER_OUTDATED = "SERVER_OUTDATED"
    HOLDER_UNREACHABLE = "HOLDER_UNREACHABLE"
    TASK_FAILED = "TASK_FAILED"
    NO_WORKER = "NO_WORKER"


class Notice(enum.Enum):
    """A warning: the server is ready, but needs attention."""

    DISK_FULL = "DISK_FULL"
    FALLBACK = "FALLBACK"
    NOT_FOLLOWING = "NOT_FOLLOWING"
    BACKFILL_FAILING = "BACKFILL_FAILING"
    TASK_FAILING = "TASK_FAILING"
    WORKERS_MISSING = "WORKERS_MISSING"
    NOT_REPLICATED = "NOT_REPLICATED"
    REPLICA_OUT = "REPLICA_OUT"
    AUDIT_FAILING = "AUDIT_FAILING"
    NEAR_LIMIT = "NEAR_LIMIT"
    REANALYSIS = "REANALYSIS"


class Finding(NamedTuple):
    """A reason or a warning, with its remedy."""

    reason: str
    detail: str
    """The problem, in one line."""
    remedy: str
    """What to do about it."""


class StartupProgress(NamedTuple):
    """Progress of the work that precedes serving, such as a legacy import."""

    work: str
    done: int
    total: int


def not_forwarding() -> ForwardingState | None:
    """Return None: calls are not forwarded."""
    return None


def _no_failures() -> Sequence[Failure]:
    return ()


class Readiness:
    """Readiness and liveness of the server, derived from what its components report."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start in the state of a server that is starting."""
        self._clock = clock
        self._beat = clock()
        self._opening: StartupProgress | None = StartupProgress("", 0, 0)
        self._draining: Callable[[], int] | None = None
        self._drain_until = 0.0
        self._store: StoreHealth | None = None
        self._snapshot: StatusSnapshot | None = None
        self._loads: Sequence[Load] = ()
        self._free: int | None = None
        self._failing: Callable[[], Sequence[Failure]] = _no_failures
        self._audit_failure: Callable[[], str] = str
        self._usage: Callable[[], Sequence[Usage]] = tuple
        self._forwarding: Callable[[], ForwardingState | None] = not_forwarding

    # ------------------------------------------------------------------ input

    def beat(self) -> None:
        """Record that the event loop runs."""
        self._beat = self._clock()

    def progress(self, what: str, done: int, total: int) -> None:
        """Record the progress of opening the store. Safe in any thread."""
        if self._opening is not None:
            self._opening = StartupProgress(what, done, total)

    def opened(self) -> None:
        """Record that the server accepts calls."""
        self._opening = None

    def draining(self, seconds: float, calls: Callable[[], int]) -> None:
        """Record that new calls are refused; the ``calls`` in progress have ``seconds``."""
        self._drain_until = self._clock() + seconds
        self._draining = calls

    def store(self, health: StoreHealth) -> None:
        """Record the health of the store that the server depends on."""
        self._store = health

    def snapshot(self, snapshot: StatusSnapshot) -> None:
        """Record the state of the migration."""
        self._snapshot = snapshot

    def disk(self, free: int | None) -> None:
        """Record the free bytes on the disk of the SQLite file; None without such a file."""
        self._free = free

    def loads(self, loads: Sequence[Load]) -> None:
        """Record the load of the stores, which has the progress of a reanalysis."""
        self._loads = loads

    def watch_tasks(self, failing: Callable[[], Sequence[Failure]]) -> None:
        """Report the failures that ``failing`` returns, which is called in any thread.

        A failed task with the policy `RESTART` is a warning, with `FATAL` a reason.
        """
        self._failing = failing

    def watch_audit(self, failure: Callable[[], str]) -> None:
        """Report why audit lines cannot be written; ``failure`` is called in any thread."""
        self._audit_failure = failure

    def watch_usage(self, usage: Callable[[], Sequence[Usage]]) -> None:
        """Report what ``usage`` returns, which is called in any thread, if it nears its limit."""
        self._usage = usage

    def watch_forwarding(self, state: Callable[[], ForwardingState | None]) -> None:
        """Report whether the holder can be reached; ``state`` is called in any thread."""
        self._forwarding = state

    # ------------------------------------------------------------------ output

    @property
    def silence(self) -> float:
        """Seconds since the last heartbeat of the event loop."""
        return max(0.0, self._clock() - self._beat)

    @property
    def live(self) -> bool:
        """Whether the event loop runs."""
        return self.silence <= LIVE_WITHIN

    def reasons(self) -> list[Finding]:
        """Return why the server is not ready; an empty list if it is."""
        found: list[Finding] = []
        if not self.live:
            found.append(unresponsive(self.silence))
        found += [_task_failed(one) for one in self._failing() if one.policy is Policy.FATAL]
        if self._draining is not None:
            left = max(0.0, self._drain_until - self._clock())
            found.append(_draining(self._draining(), left))
        elif self._opening is not None:
            found.append(_starting(self._opening))
        elif (forwarding := self._forwarding()) is not None:
            found += [] if forwarding.is_serving else [_holder_unreachable(forwarding)]
        elif self._snapshot is not None and self._snapshot.taken_over:
            found.append(_not_the_holder())
        elif self._is_outdated:
            found.append(_outdated())
        elif self._store is not None and not self._store.healthy:
            found.append(_store_down(self._store))
        elif self._commit_seconds > STALLED_AFTER:
            found.append(_writes_stalled(self._commit_seconds))
        return found

    def warnings(self) -> list[Finding]:
        """Return the problems that leave the server ready."""
        found = []
        snapshot = self._snapshot
        if self._free is not None and self._free < FULL_BELOW:
            found.append(_disk_full(self._free))
        if snapshot is not None and not snapshot.taken_over:
            found += _migration_warnings(snapshot)
        found += [task_failing(one) for one in self._failing() if one.policy is Policy.RESTART]
        if any(load.is_unreplicated for load in self._loads):
            found.append(_not_replicated())
        found += [_replica_out(one) for load in self._loads for one in _missing(load.replicas)]
        found += [
            _reanalysis(load.store, load.reanalysis)
            for load in self._loads
            if load.reanalysis is not None
        ]
        failure = self._audit_failure()
        if failure:
            found.append(_audit_failing(failure))
        found += [_near_limit(one) for one in self._usage() if one.used >= NEAR * one.limit]
        return found

    @property
    def _needs_postgres(self) -> bool:
        """Whether PostgreSQL is the only store."""
        return self._snapshot is not None and self._snapshot.phase is Phase.POSTGRES_ONLY

    @property
    def _is_outdated(self) -> bool:
        return self._needs_postgres and any(load.is_outdated for load in self._loads)

    @property
    def _commit_seconds(self) -> float:
        """Duration of the oldest commit on PostgreSQL, if writes depend on it."""
        if not self._needs_postgres:
            return 0.0
        return max((load.commit_seconds for load in self._loads), default=0.0)

    def document(self) -> dict[str, Any]:
        """Return the body of `/readyz`."""
        reasons = self.reasons()
        snapshot, forwarding = self._snapshot, self._forwarding()
        known = snapshot if forwarding is None else forwarding
        target = {} if forwarding is None else {"forwarding_to": forwarding.holder}
        return {
            "ready": not reasons,
            "phase": None if known is None or known.phase is None else known.phase.slug,
            **target,
            "reasons": [finding._asdict() for finding in reasons],
            "warnings": [finding._asdict() for finding in self.warnings()],
            "progress": None if not self._opening else self._opening._asdict(),
        }


def unresponsive(silence: float) -> Finding:
    """Return the reason that the event loop has not responded for ``silence`` seconds."""
    return Finding(
        Reason.UNRESPONSIVE.value,
        f"the event loop has not responded for {silence:.1f} s",
        "check whether the machine swaps or is out of CPU; if the problem persists, restart the "
        "server and report it with a stack trace of the process",
    )


def _starting(progress: StartupProgress) -> Finding:
    detail = "the server is opening its store"
    if progress.work:
        share = f": {progress.done:,} of {progress.total:,}" if progress.total else ""
        detail += f"; {progress.work}{share}"
    return Finding(
        Reason.STARTING.value, detail, "wait; the server becomes ready once the store is open"
    )


def _draining(calls: int, left: float) -> Finding:
    return Finding(
        Reason.DRAINING.value,
        f"the server is stopping; {calls:,} calls in progress have up to {left:.0f} s",
        "none needed; send calls to another server, or restart this one after it has exited",
    )


def _not_the_holder() -> Finding:
    return Finding(
        Reason.NOT_THE_HOLDER.value,
        "another server has taken over this migration, so this one must not serve",
        "stop this server; send calls to the other one",
    )


def _outdated() -> Finding:
    return Finding(
        Reason.SERVER_OUTDATED.value,
        "a newer server has upgraded the schema of the PostgreSQL store, so this one must not "
        "write",
        "replace this server by the newer version; send calls to the servers that have it",
    )


def _holder_unreachable(state: ForwardingState) -> Finding:
    if not state.holder:
        detail = state.detail
    else:
        detail = f"calls are forwarded to {state.holder}, which cannot serve them: "
        detail += state.detail or "it was not asked yet"
    return Finding(
        Reason.HOLDER_UNREACHABLE.value,
        detail,
        "check that the server with the SQLite file runs and can be reached from here; this one "
        "then becomes ready automatically",
    )


def _store_down(health: StoreHealth) -> Finding:
    name = "PostgreSQL" if health.store.value == "postgresql" else "the SQLite file"
    return Finding(
        Reason.STORE_DOWN.value,
        f"{name} does not answer: {health.detail}",
        "check that it runs and is reachable; the server then becomes ready automatically",
    )


def _writes_stalled(seconds: float) -> Finding:
    return Finding(
        Reason.WRITES_STALLED.value,
        f"a commit on PostgreSQL has not ended for {seconds:.0f} s",
        "check its synchronous standbys (pg_stat_replication) and its disk; the server then "
        "becomes ready automatically",
    )


def _not_replicated() -> Finding:
    return Finding(
        Notice.NOT_REPLICATED.value,
        "writes are refused: no synchronous standby of PostgreSQL receives changes, or the role "
        "cannot see them, and postgres_require_sync is set",
        "start a standby that synchronous_standby_names includes, and GRANT pg_read_all_stats to "
        "the role; writes then resume automatically",
    )


def _reanalysis(store: Store, progress: Reanalysis) -> Finding:
    name = "PostgreSQL" if store is Store.POSTGRESQL else "SQLite"
    return Finding(
        Notice.REANALYSIS.value,
        f"the search index of {name} is being made anew by a newer version: {progress.done:,} of "
        f"{progress.total:,} messages; until then, some words do not find the other ones",
        "none needed; it continues after a restart",
    )


def _missing(replicas: Sequence[ReplicaLoad]) -> list[ReplicaLoad]:
    """Return the replicas that should be in rotation but are not.

    The primary is one of them only if there is no other replica: where the roles change, the
    setting names every server. A replica is not missing before its first answer or refusal.
    """
    expected = {_PRIMARY, ""} if any(not one.out for one in replicas) else {""}
    return [one for one in replicas if one.out not in expected | {_UNKNOWN}]


def _replica_out(replica: ReplicaLoad) -> Finding:
    problem, _, remedy = replica.detail.rpartition("; ")
    return Finding(
        Notice.REPLICA_OUT.value,
        f"replica {replica.number} of PostgreSQL, {replica.place}, answers no reads: {problem}; "
        "other servers answer them",
        remedy,
    )


def _task_failed(failure: Failure) -> Finding:
    return Finding(
        Reason.TASK_FAILED.value,
        f"background task {failure.task} has failed and the server cannot run without it: "
        f"{failure.error}",
        "restart the server; if the task fails again, report it with the traceback from the log",
    )


def task_failing(failure: Failure) -> Finding:
    """Return the warning that a background task fails and is restarted."""
    times = "once" if failure.failures == 1 else f"{failure.failures:,} times"
    return Finding(
        Notice.TASK_FAILING.value,
        f"background task {failure.task} has failed {times} and is being restarted: "
        f"{failure.error}",
        "fix the cause, which the log shows with a traceback; the task restarts automatically, "
        "with up to 30 s between attempts",
    )


def _audit_failing(failure: str) -> Finding:
    return Finding(
        Notice.AUDIT_FAILING.value,
        f"audit lines cannot be written and are lost: {failure}",
        "make room on the disk of the audit file, or set audit to another file; lines are then "
        "written again automatically",
    )


def _near_limit(usage: Usage) -> Finding:
    return Finding(
        Notice.NEAR_LIMIT.value,
        f"{usage.used:,.0f} of {usage.limit:,.0f} {usage.what} are in use; beyond that, calls or "
        "connections are refused",
        f"find the callers that take them; {usage.setting} sets the limit",
    )


def _disk_full(free: int) -> Finding:
    return Finding(
        Notice.DISK_FULL.value,
        f"{free / 1024 / 1024:,.0f} MiB are free on the disk of the SQLite file; when it is full, "
        "writes are refused and reads continue",
        "free space on that disk; writes then resume automatically",
    )


def _migration_warnings(snapshot: StatusSnapshot) -> list[Finding]:
    found = []
    if snapshot.reads_from_fallback:
        found.append(
            Finding(
                Notice.FALLBACK.value,
                "PostgreSQL is down or behind, so SQLite answers reads",
                "check that PostgreSQL runs; it catches up and takes over automatically",
            )
        )
    if snapshot.trouble is not None:
        found.append(
            Finding(
                Notice.NOT_FOLLOWING.value,
                f"replication to PostgreSQL is interrupted: {snapshot.trouble.detail}",
                "run sagastore migrate status; the journal keeps every change, so no data is lost",
            )
        )
    if snapshot.backfill.error:
        found.append(
            Finding(
                Notice.BACKFILL_FAILING.value,
                f"the backfill fails and is retried: {snapshot.backfill.error}",
                "run sagastore migrate status",
            )
        )
    return found
