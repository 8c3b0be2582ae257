"""Verifications: runs one verification at a time, and stores the result of the last one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from sagastore_server.migration.auxiliary_rows import carry_all, finish_carrying
from sagastore_server.migration.current_state import MigrationContext
from sagastore_server.migration.records import Row
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.shadow import ShadowReader
from sagastore_server.migration.timeouts import stop_within
from sagastore_server.migration.verifier import Verifier
from sagastore_server.runtime.supervisor import SupervisedTask
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.migration import (
    BackfillState,
    Mismatch,
    Verification,
    VerifyProgress,
)
from sagastore_server.storage.model import Message
from sagastore_server.storage.sessions import RecordKind

_WAIT_SLICE = 0.5
"""Seconds between progress reports to a caller that waits for another verification."""

_log = logging.getLogger(__name__)


class Verifications:
    """Serializes verifications, and commits their results to the migration state."""

    def __init__(
        self,
        context: MigrationContext,
        replicator: Replicator,
        shadow: ShadowReader,
    ) -> None:
        """Verify ``target`` against ``source``."""
        self._source = context.source
        self._target = context.target
        self._current_state = context.current_state
        self._clock = context.environment.clock
        self._supervisor = context.supervisor
        self._page = context.tuning.verifier_page
        self._replicator = replicator
        self._session = replicator.session
        self._fallback = replicator.fallback
        self._shadow = shadow
        self._turn = asyncio.Lock()
        self._automatic: SupervisedTask | None = None
        self.progress: VerifyProgress | None = None
        """Progress of the verification that runs; None: none runs."""
        self.covered = False
        """Whether ``Replicator.touched`` has all rows changed since the last verification began."""

    async def run(self, *, repair: bool) -> AsyncGenerator[VerifyProgress, None]:
        """Verify as soon as no other verification runs; until then yield empty progress.

        Raises:
            UnavailableError: A store failed; there is no result.

        """
        while not await self._my_turn():
            yield VerifyProgress(0, 0, (), 0, 0, done=False)
        try:
            verifier = self._verifier()
            complete = self._session.mark.state is BackfillState.DONE
            self._replicator.watch_changes()
            self.covered = False
            async with aclosing(verifier.run(repair)) as steps:
                async for progress in steps:
                    self.progress = progress
                    if progress.done:
                        # Before the caller gets "done", since it may act on the result at once.
                        await self._remember(verifier.result, complete=complete)
                        self.progress = None
                    yield progress
        finally:
            self.progress = None
            self._turn.release()

    async def check(self, keys: list[tuple[RecordKind, str]]) -> list[Mismatch]:
        """Compare the rows with these keys; return the lasting differences."""
        return await self._verifier().check(keys)

    def start_automatic(self) -> None:
        """Verify once in the background, as after each backfill."""
        if self._automatic is None or self._automatic.done:
            self._automatic = self._supervisor.start(
                "automatic-verification", self._verify_in_background
            )

    async def close(self) -> None:
        """Stop the automatic verification."""
        if self._automatic is not None:
            await stop_within([self._automatic], 1.0)

    async def _my_turn(self) -> bool:
        try:
            async with asyncio.timeout(_WAIT_SLICE):
                await self._turn.acquire()
        except TimeoutError:
            return False
        return True

    def _verifier(self) -> Verifier:
        async def recarry() -> None:
            async with self._session.marking:
                mark = await carry_all(self._source, self._session)
                await finish_carrying(self._session, mark)

        mark = self._session.mark
        return Verifier(
            self._source,
            self._target,
            self._fallback.reach,
            self._is_expected,
            compare_carried=mark.carried or mark.state is BackfillState.DONE,
            recarry=recarry,
            page=self._page,
            clock=self._clock,
        )

    def _is_expected(self, row: Row) -> bool:
        """Return whether the target should have ``row`` by now."""
        mark, base = self._session.mark, self._current_state.state.base
        if mark.state is BackfillState.DONE or row.revision > base:
            return True
        if not isinstance(row, Message):
            return mark.carried
        return mark.state is BackfillState.RUNNING and row.id <= mark.cursor

    async def _remember(self, result: Verification, *, complete: bool) -> None:
        if complete is not (self._session.mark.state is BackfillState.DONE):
            return  # Started before the copy was complete: proves nothing about the rest.
        async with self._current_state.changing:
            state = self._current_state.state
            if state.phase.journals:
                state = state._replace(last_verification=result)
                await self._current_state.commit(self._source, state)
        if complete and not result.mismatch_count:
            self.covered = True
            self._shadow.reset()
        _log.info(
            "verification: %d rows compared, %d differ, %d repaired",
            result.compared,
            result.mismatch_count,
            result.repaired,
        )

    async def _verify_in_background(self) -> None:
        try:
            async for _ in self.run(repair=False):
                self._current_state.notify()
        except StorageError as exc:
            _log.warning("the automatic verification failed: %s", exc)
        finally:
            self._current_state.notify()
