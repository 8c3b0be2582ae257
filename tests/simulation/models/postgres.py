"""PostgresServer: the durable contents of PostgreSQL, and the faults it can have."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import Callable
from random import Random

from sagastore_server.postgresql.indexes import LATE
from sagastore_server.storage.files import File
from sagastore_server.storage.model import Message, QuarantinedRow
from sagastore_server.storage.replication import ExtraValue, TargetRecord
from sagastore_server.storage.sessions import Session
from tests.simulation.models.latency import Latency
from tests.simulation.models.process import Process
from tests.simulation.models.transaction import Transaction


@dataclasses.dataclass
class PostgresContents:
    """Durable contents of PostgreSQL."""

    schema: int = 0
    """Version of the schema; 0: none yet."""
    rows: dict[str, Message] = dataclasses.field(default_factory=dict)
    sessions: dict[str, Session] = dataclasses.field(default_factory=dict)
    tombs: dict[str, int] = dataclasses.field(default_factory=dict)
    """Revision of the latest deletion, by id."""
    record: TargetRecord | None = None
    """Migration record; its ``lease_seconds`` is not used."""
    lease_until: float = 0.0
    """End of the lease, by the event loop's time, which is the clock of the database."""
    indexes: dict[str, bool] = dataclasses.field(default_factory=lambda: dict.fromkeys(LATE, True))
    """Whether an index is complete, by name."""
    quarantine: dict[str, QuarantinedRow] = dataclasses.field(default_factory=dict)
    """By source key."""
    files: dict[str, File] = dataclasses.field(default_factory=dict)
    """By id."""
    file_tombs: dict[str, int] = dataclasses.field(default_factory=dict)
    """Revision of the latest deletion, by id of a file."""
    extras: dict[tuple[str, str], ExtraValue] = dataclasses.field(default_factory=dict)
    """By message id and name."""
    revision: int = 1
    """Last revision taken from the sequence, whose start value counts as taken."""

    def snapshot(self) -> PostgresContents:
        """Return a copy that later transactions do not change, like a backup or a standby."""
        return PostgresContents(
            **{name: copy.copy(getattr(self, name)) for name in _contents_fields()}
        )

    @property
    def has_content(self) -> bool:
        """Whether there are messages, sessions, files or rows in quarantine."""
        sessions = any(one.exists for one in self.sessions.values())
        return bool(self.rows or sessions or self.files or self.quarantine)


class PostgresServer(PostgresContents, Latency):
    """PostgreSQL and the network to it.

    Faults, set or called from outside:

    - ``crash`` and ``start``: transactions are rolled back, and clients get an error.
    - ``cut``: connections are lost; a COMMIT in transit may arrive or not.
    - ``hold`` and ``release``: half-open connections that neither deliver nor fail.
    - ``restore``: an earlier state is restored, with or without a connection error.
    - ``fault`` "full": commits fail with probability 0.6; the rest works.
    - ``slow``: factor for every duration.
    - ``lag``: maximum seconds between preparing rows and sending them.
    - ``read_failures``: probability that a read of messages times out; the rest works.
    """

    def __init__(self, draw: Random, process: Process | None = None, *, scale: float = 1.0) -> None:
        """Create an empty database served by ``process``."""
        PostgresContents.__init__(self)
        Latency.__init__(self, draw, scale)
        self.process = process or Process("postgres")
        self.up = True
        self.held: asyncio.Event | None = None
        """Set while the network delivers nothing; waiters wait for the event."""
        self.fault: str | None = None
        self.lag = 0.0
        self.read_failures = 0.0
        self.locks: dict[str, asyncio.Lock] = {}
        self.requests: list[Transaction] = []
        """Transactions in progress, including those of lost connections."""
        self.commits = 0
        self._clients: list[tuple[Process, Callable[[], None]]] = []

    # ------------------------------------------------------------------ used by transactions

    async def hop(self, most: float = 0.001) -> None:
        """Take one trip over the network, in either direction."""
        await asyncio.sleep(self.pause(most))
        while self.held is not None:
            await self.held.wait()

    def lock(self, key: str) -> asyncio.Lock:
        """Return the lock of a row."""
        return self.locks.setdefault(key, asyncio.Lock())

    # ------------------------------------------------------------------ faults

    def on_connection_loss(self, process: Process, listener: Callable[[], None]) -> None:
        """Call ``listener`` in the context of ``process`` when its connections are lost.

        The call runs in the next iteration of its event loop, before any answer on another
        connection.
        """
        self._clients.append((process, listener))

    def _notify_connection_loss(self, of: Process | None = None) -> None:
        loop = asyncio.get_running_loop()
        self._clients = [client for client in self._clients if not client[0].dead]
        for process, listener in self._clients:
            if of is None or process is of:
                loop.call_soon(listener, context=process.context)

    def cut(self, *, of: Process | None = None, silent: bool = False) -> None:
        """Lose the connections of a process, or all; ``silent``: without an error for the client.

        A transaction whose COMMIT was not sent is rolled back after a moment in which it keeps its
        locks. Otherwise it commits late, or not at all.
        """
        for request in list(self.requests):
            if of is None or request.process is of:
                request.lose(silent=silent)
        if not silent:
            self._notify_connection_loss(of)

    def crash(self) -> None:
        """Stop at once; no request is answered until ``start``."""
        self.up = False
        self._abort_all()

    def start(self) -> None:
        """Answer again, with all committed data."""
        self.up = True

    def _abort_all(self) -> None:
        for request in list(self.requests):
            request.abort()
        self.requests.clear()
        self.locks = {}
        self._notify_connection_loss()

    def hold(self) -> None:
        """Deliver nothing on the network, without an error, until ``release``."""
        if self.held is None:
            self.held = asyncio.Event()

    def release(self, lose: bool) -> None:
        """End ``hold``; ``lose``: the connections turn out to be lost."""
        if self.held is not None:
            held, self.held = self.held, None
            if lose:
                self.cut()
            held.set()

    def restore(self, saved: PostgresContents, *, noticed: bool = False) -> None:
        """Restore an earlier state, which this does not modify.

        Started transactions are rolled back, with an error for the client. Requests in transit are
        executed on the earlier state, unless ``noticed``: then every connection is lost, as in a
        restart. Otherwise clients get no error, as behind a pooler that reconnects transparently.
        """
        for request in list(self.requests):
            if noticed or request.begun:
                request.abort()
        for name in _contents_fields():
            setattr(self, name, copy.copy(getattr(saved, name)))
        if noticed:
            self._notify_connection_loss()


def _contents_fields() -> list[str]:
    return [field.name for field in dataclasses.fields(PostgresContents)]
