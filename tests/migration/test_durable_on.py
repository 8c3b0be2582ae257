"""`durable_on` names the stores that have a message, also where dual write has just begun."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sagastore_server.sqlite.writer import SQLiteGroupWriter
from sagastore_server.storage.model import Store
from sagastore_server.storage.phase import Phase
from tests.migration.conftest import Place
from tests.migration.held import held, held_commits
from tests.sqlite.sources import opened_source
from tests.support.drafts import draft
from tests.support.migrating_service import change
from tests.support.waiting import until

if TYPE_CHECKING:
    import pytest

BOTH = (Store.SQLITE, Store.POSTGRESQL)


async def test_write_without_a_caller_is_counted_when_dual_write_begins(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the queue of writes, and holds no place in the gate any more."""
    async with held(place) as one:
        with held_commits(monkeypatch) as commits:
            one.target.claimed.close()
            changing = asyncio.create_task(change(one.control, Phase.DUAL_WRITE))
            await one.target.claimed.reached.wait()
            commits.close()
            save = asyncio.create_task(one.backend.save(draft("m", "one")))
            await until(commits.reached.is_set)
            save.cancel()
            await asyncio.wait({save})
            one.target.claimed.open()
            gate = one.service._router._fence
            await until(lambda: not gate._open.is_set())
            commits.open.set()
            await changing
            revision = (await one.source.get("m")).revision
            state = await one.source.state()
            journalled = await one.source.journal(0, 10)
            assert revision <= state.base or journalled
            again = await one.backend.save(draft("m", "one"), None, 10.0)
            assert again.durable_on == BOTH
            assert await one.stored("m") == "one"


async def test_flush_waits_for_a_commit_that_the_event_loop_has_not_heard_of(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of the file see it already."""
    told, tell = threading.Event(), SQLiteGroupWriter._report

    def late(self: SQLiteGroupWriter, group: Sequence[Any], outcomes: list[Any]) -> None:
        told.wait()
        tell(self, group, outcomes)

    async with opened_source(place.path) as source:
        monkeypatch.setattr(SQLiteGroupWriter, "_report", late)
        save = asyncio.create_task(source.save(draft("m", "one")))
        while not (seen := await source.batch_get(["m"])):
            pass
        assert source.committed == 0
        flushed = asyncio.create_task(source.flush())
        try:
            # The flush is behind it in the queue, so its answer is the later one.
            assert await source.batch_get(["m"]) == seen
            assert not flushed.done()
        finally:
            told.set()
        assert await flushed >= seen["m"].revision
        await save
