"""BothStores: waits until PostgreSQL has a write of SQLite as well, for DURABILITY_BOTH."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sagastore_server.migration.current_state import MigrationContext
from sagastore_server.migration.replicator import Replicator
from sagastore_server.storage.base import outcome_of
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import SaveRequest, SaveResult, Store
from sagastore_server.storage.sessions import RecordKind

BOTH = (Store.SQLITE, Store.POSTGRESQL)


class BothStores:
    """Waits for PostgreSQL after a write of SQLite."""

    def __init__(self, context: MigrationContext, replicator: Replicator) -> None:
        """Wait for the journal position of ``replicator``."""
        self._source = context.source
        self._current_state = context.current_state
        self._session = replicator.session
        self._fallback = replicator.fallback

    async def reached(
        self,
        saved: Sequence[tuple[str, int]],
        within: float | None,
        kind: RecordKind = RecordKind.MESSAGE,
    ) -> bool:
        """Wait until PostgreSQL has rows, if ``within`` is given and the phase has two stores.

        Args:
            saved: The rows, by id and revision.
            within: Seconds to wait at most; None: do not wait.
            kind: The kind of the rows.

        Returns:
            Whether PostgreSQL is known to have them.

        Raises:
            UnavailableError: It has not after ``within`` seconds.
            FencedError: As ``Fallback.check_lease``.

        """
        if within is None or not self._current_state.phase.journals:
            return False
        both = await self._everywhere(saved, within, kind)
        if self._current_state.phase.writes_sqlite:
            self._fallback.check_lease()
        return both

    async def told(
        self,
        requests: Sequence[SaveRequest],
        results: Sequence[SaveResult | Exception],
        *,
        on_both: bool,
    ) -> list[SaveResult | Exception]:
        """Return the results of a batch with their ``durable_on``, as far as it was asked for.

        ``on_both``: PostgreSQL has them all already.
        """
        if on_both:
            return [one if isinstance(one, Exception) else _on_both(one) for one in results]
        told = list(results)
        waiting = {
            index: outcome_of(self._told(result, request.everywhere_within))
            for index, (request, result) in enumerate(zip(requests, results, strict=True))
            if request.everywhere_within is not None and not isinstance(result, Exception)
        }
        for index, outcome in zip(waiting, await asyncio.gather(*waiting.values()), strict=True):
            told[index] = outcome
        return told

    async def _told(self, result: SaveResult, within: float | None) -> SaveResult:
        both = await self.reached([(result.id, result.revision)], within)
        return _on_both(result) if both else result

    async def _everywhere(
        self, saved: Sequence[tuple[str, int]], within: float, kind: RecordKind
    ) -> bool:
        sequence = self._source.committed
        base = self._current_state.state.base
        old = [key for key, revision in saved if revision <= base]
        if old and self._session.mark.state is not BackfillState.DONE:
            # Unchanged, and older than the journal: the backfill may not have copied them yet.
            sequence = await self._source.requeue(old, kind)
        if await self._fallback.reach(sequence, within):
            return True
        if not self._current_state.phase.journals:
            return False
        noun = kind.name.lower()
        what = f"{noun} {saved[0][0]!r} is" if len(saved) == 1 else f"{len(saved):,} {noun}s are"
        raise UnavailableError(
            f"{what} stored in SQLite and not in PostgreSQL yet; the change is replicated "
            "automatically, and repeating the request is safe"
        )


def _on_both(result: SaveResult) -> SaveResult:
    return result._replace(durable_on=BOTH)
