"""ModelPostgreSQL: model of PostgreSQL as a single store, and of its connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

from sagastore_server.postgresql.batch import BLOCK
from sagastore_server.storage.base import PreparedTerms
from sagastore_server.storage.batch_saves import sessions_of
from sagastore_server.storage.changes import Changes, Revisions, Turn
from sagastore_server.storage.errors import (
    CannotOpenError,
    FencedError,
    StorageError,
    UnavailableError,
)
from sagastore_server.storage.files import File
from sagastore_server.storage.model import (
    BulkResult,
    NewMessage,
    OnConflict,
    SaveResult,
    Store,
    StoreHealth,
)
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.sessions import Session
from tests.simulation.models.file_rows import ModelFiles, store_files
from tests.simulation.models.postgres import PostgresServer
from tests.simulation.models.process import Process
from tests.simulation.models.reads import Rows, SnapshotReads
from tests.simulation.models.session_rows import ModelSessions, deletable, store_sessions
from tests.simulation.models.transaction import Read, Transaction, Write

T = TypeVar("T")

COMMAND_TIMEOUT = 17.0
"""Seconds after which a client gives up a statement: the default of ``PostgreSQLOptions`` plus the
margin for the network (``postgresql.pool``).
"""

_SESSIONS = "\0sessions"
"""Lock of the rows of all sessions and files."""

ACQUIRE_TIMEOUT = 5.0
"""Maximum seconds that a client waits for a connection, and for its close."""


class ModelPostgreSQL(SnapshotReads, ModelSessions, ModelFiles):
    """Storage contract on a ``PostgresServer``, used by one process.

    Each write is a separate transaction. Writes are refused during a migration.
    """

    def __init__(self, server: PostgresServer, process: Process, now: Callable[[], int]) -> None:
        """Create a store on ``server``; ``now`` is the process's wall clock in microseconds."""
        self._server = server
        self.process = process
        self._now = now
        self._open = False
        self._under_way: dict[Transaction, None] = {}

    @property
    def place(self) -> str:
        """See the contract."""
        return "PostgreSQL at model"

    # ------------------------------------------------------------------ opening and closing

    async def open(self) -> None:
        """See the contract. A no-op if open; does not check whether the server answers."""
        self.process.check_alive()
        if self._open:
            return
        self._open = True
        try:
            await self._ask(Read(lambda: None))
        except StorageError as exc:
            self._open = False
            raise CannotOpenError(f"cannot use {self.place}: {exc}") from exc
        except BaseException:
            self._open = False
            raise

    async def close(self) -> None:
        """See the contract; waits for calls in progress as long as the real pool does."""
        self.process.check_alive()
        self._open = False
        answers = [transaction.answer for transaction in self._under_way]
        if answers:
            await asyncio.wait(answers, timeout=ACQUIRE_TIMEOUT)

    # ------------------------------------------------------------------ transactions

    async def _ask(self, work: Read | Write, patience: float | None = COMMAND_TIMEOUT) -> object:
        """Execute a transaction; give up after ``patience`` seconds."""
        self.process.check_alive()
        if not self._open:
            raise UnavailableError("the store is not open; try again")
        transaction = Transaction(self._server, self.process, work)
        self._under_way[transaction] = None
        try:
            done, _ = await asyncio.wait({transaction.answer}, timeout=patience)
        except asyncio.CancelledError:
            transaction.lose(silent=True)
            await self._give_up()
            raise
        finally:
            del self._under_way[transaction]
        if not done:
            transaction.lose(silent=True)
            raise UnavailableError("the PostgreSQL store did not answer in time; try again")
        return transaction.answer.result()

    async def _give_up(self) -> None:
        """Send a cancel request for a statement; this can hang as well."""
        if self._server.held is not None:
            waiting = asyncio.ensure_future(self._server.held.wait())
            await asyncio.wait({waiting}, timeout=ACQUIRE_TIMEOUT)
            waiting.cancel()

    async def _read(
        self, look: Callable[[PostgresServer], T], patience: float | None = COMMAND_TIMEOUT
    ) -> T:
        return cast("T", await self._ask(Read(lambda: look(self._server)), patience))

    async def _look(self, look: Callable[[Rows], T]) -> T:
        return await self._look_at_server(lambda server: look(server.rows))

    async def _look_at_sessions(self, look: Callable[[Mapping[str, Session]], T]) -> T:
        return await self._look_at_server(lambda server: look(server.sessions))

    async def _look_at_files(self, look: Callable[[Mapping[str, File]], T]) -> T:
        return await self._look_at_server(lambda server: look(server.files))

    async def _deletable_ids(self, session_id: str, upto: int, limit: int) -> list[str]:
        return await self._look(lambda rows: deletable(rows, session_id, upto)[:limit])

    async def _look_at_server(self, look: Callable[[PostgresServer], T]) -> T:
        server = self._server
        if server.read_failures and server.draw.random() < server.read_failures:
            self.process.check_alive()
            # Refused at once, or after the time-out.
            longest = ACQUIRE_TIMEOUT if server.draw.random() < 0.2 else 0.01
            await asyncio.sleep(server.pause(longest))
            raise UnavailableError("the PostgreSQL store did not answer in time; try again")
        return await self._read(look)

    async def count(self) -> int:
        """See the contract; on a separate connection, without a time-out."""
        return await self._read(lambda server: len(server.rows), None)

    async def health(self) -> StoreHealth:
        """See the contract; a database without the schema is healthy and empty."""
        try:
            counts = await self._read(_counts)
        except StorageError as exc:
            return StoreHealth(Store.POSTGRESQL, False, str(exc), -1, 0)
        return StoreHealth(Store.POSTGRESQL, True, "", *counts)

    # ------------------------------------------------------------------ writes of POSTGRES_ONLY

    async def save(
        self,
        draft: NewMessage,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """See the contract."""
        return await self._change(
            [draft.id], sessions_of(draft), lambda changes: changes.save(draft, if_revision)
        )

    async def bulk_save(
        self,
        drafts: Sequence[NewMessage],
        on_conflict: OnConflict,
        terms: PreparedTerms | None = None,
    ) -> BulkResult:
        """See the contract."""
        ids = [draft.id for draft in drafts]
        # As the store: one statement takes the sequences, another one writes.
        turn = await self._look(lambda rows: Turn(self._take_block()[0], self._now()))
        return await self._change(
            ids, sessions_of(*drafts), lambda changes: changes.bulk_save(drafts, on_conflict, turn)
        )

    async def delete(self, message_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        await self._change(
            [message_id], (), lambda changes: changes.delete(message_id, if_revision)
        )

    async def _change(
        self,
        ids: Sequence[str],
        sessions: Sequence[str],
        apply: Callable[[Changes], T],
        messages: Sequence[NewMessage] = (),
    ) -> T:
        del messages
        return await self._execute(ids, sessions, apply)

    async def _change_files(self, file_ids: Sequence[str], apply: Callable[[Changes], T]) -> T:
        return await self._execute((), (), apply)

    async def _execute(
        self, ids: Sequence[str], sessions: Sequence[str], apply: Callable[[Changes], T]
    ) -> T:
        """Execute one write in its own transaction."""
        server = self._server
        wanted = sorted(set(ids))
        # The sessions of stored messages are locked as well, and so are files; one lock for all of
        # them is stricter.
        locks = [_SESSIONS, *wanted]

        def execute() -> Callable[[], T]:
            before = {key: server.rows[key] for key in wanted if key in server.rows}
            revisions = Revisions([self._take_block(2 * len(ids) // BLOCK + 1)])
            known = dict(server.sessions)
            found = {None, *known, *sessions}
            if any(one.session_id not in found for one in before.values()):
                # As the store: the missing row of a session is inserted first.
                self._check_owner()
            stored = (Store.POSTGRESQL,)
            changes = Changes(
                before, known, revisions, self._now(), stored, files=dict(server.files)
            )
            answer = apply(changes)
            self._check_guard(changes)

            def commit() -> T:
                self._check_guard(changes)
                self._store(changes)
                return answer

            return commit

        return cast("T", await self._ask(Write(locks, execute)))

    def _take_block(self, blocks: int = 1) -> range:
        """Take blocks of revisions; they are lost if the transaction is rolled back."""
        first = self._server.revision + 1
        self._server.revision += BLOCK * blocks
        return range(first, self._server.revision + 1)

    def _check_guard(self, changes: Changes) -> None:
        """Refuse statements that change rows during a migration, as the triggers do."""
        if changes.after or changes.sessions or changes.files.after:
            self._check_owner()

    def _check_owner(self) -> None:
        record = self._server.record
        if record is not None and record.phase is not Phase.POSTGRES_ONLY:
            raise FencedError("the PostgreSQL store belongs to a migration from SQLite")

    def _store(self, changes: Changes) -> None:
        for key, message in changes.after.items():
            if message is None:
                self._server.rows.pop(key, None)
            else:
                self._server.rows[key] = message
        self._server.tombs.update(changes.buried)
        store_sessions(self._server.sessions, self._server.rows, changes)
        store_files(self._server.files, self._server.file_tombs, changes.files)


def _counts(server: PostgresServer) -> tuple[int, int, int, int]:
    """Return the number of messages, the version of the schema, and the other numbers."""
    sessions = sum(one.exists for one in server.sessions.values())
    return len(server.rows), server.schema, sessions, len(server.files)
