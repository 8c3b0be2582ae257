"""A server from which another one has taken over, or may have, acknowledges nothing."""

from __future__ import annotations

import asyncio

import pytest

from sagastore_server.storage.errors import FencedError, UnavailableError
from sagastore_server.storage.model import OnConflict, Store
from sagastore_server.storage.phase import Phase
from tests.migration.conftest import Place
from tests.migration.held import TAKE_OVER, Backup, held, held_commits
from tests.support.drafts import draft
from tests.support.migrating_service import change, eventually_current, unblocked, walk_to
from tests.support.postgres import execute
from tests.support.waiting import until

REFUSED = (FencedError, UnavailableError)
PAUSE = 6.0
"""Seconds: longer than a server may stand still without having to prove its lease."""


async def test_taken_over_server_acknowledges_nothing(place: Place) -> None:
    async with held(place) as one:
        await one.backend.save(draft("a"))
        await walk_to(one.control, Phase.READ_POSTGRES)
        await eventually_current(one.control)
        await execute(place.dsn, TAKE_OVER)
        # The first of them is in SQLite when PostgreSQL reports the other server.
        for id in ("b", "c"):
            with pytest.raises(REFUSED):
                await one.backend.save(draft(id))
        await until(lambda: one.service._replicator.session.fenced)
        with pytest.raises(FencedError):
            await one.backend.save(draft("d"))
        with pytest.raises(FencedError):
            await one.backend.batch_get(["a"])
        assert not (await one.backend.health()).healthy


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.READ_POSTGRES])
async def test_paused_server_proves_its_lease_first(place: Place, phase: Phase) -> None:
    async with held(place) as one:
        await one.backend.save(draft("a"))
        await walk_to(one.control, phase)
        one.target.renewing.close()
        one.clock.ahead += PAUSE
        with pytest.raises(UnavailableError, match="was paused for"):
            await one.backend.save(draft("b"))
        with pytest.raises(UnavailableError, match="was paused for"):
            await one.backend.batch_get(["a"])
        one.target.renewing.open()
        await until(lambda: one.service._replicator.session.guard.contested is None)
        assert Store.SQLITE in (await one.backend.save(draft("b"))).durable_on
        assert sorted(await one.backend.batch_get(["a", "b"])) == ["a", "b"]


async def test_pending_write_of_paused_server_is_not_acknowledged(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with held(place) as one:
        with held_commits(monkeypatch) as commits:
            await walk_to(one.control, Phase.DUAL_WRITE)
            commits.close()
            save = asyncio.create_task(one.backend.save(draft("a")))
            await until(commits.reached.is_set)
            one.target.renewing.close()
            one.target.applying.close()
            one.clock.ahead += PAUSE
            commits.open.set()
            with pytest.raises(UnavailableError, match="was paused for"):
                await save
            assert await one.source.batch_get(["a"])


async def test_paused_server_that_was_replaced_is_fenced(place: Place) -> None:
    async with held(place) as one:
        await walk_to(one.control, Phase.DUAL_WRITE)
        one.target.renewing.close()
        await execute(place.dsn, TAKE_OVER)
        one.clock.ahead += PAUSE
        with pytest.raises(UnavailableError):
            await one.backend.save(draft("a"))
        one.target.renewing.open()
        await until(lambda: one.service._replicator.session.fenced)
        with pytest.raises(FencedError):
            await one.backend.save(draft("a"))


async def test_backfill_detects_takeover_first(place: Place) -> None:
    """It asks the follower to find out, and copies nothing more."""
    async with held(place) as one:
        drafts = [draft(f"m-{number:03}") for number in range(60)]
        await one.backend.bulk_save(drafts, OnConflict.REPLACE)
        await walk_to(one.control, Phase.DUAL_WRITE)
        one.target.copies_until_held = 2
        await change(one.control, Phase.BACKFILL)
        await one.target.copying.reached.wait()
        one.target.renewing.close()
        await execute(place.dsn, TAKE_OVER)
        one.target.copying.open()
        await until(
            lambda: (
                one.service._replicator.session.guard.contested is not None
                or one.service._replicator.session.fenced
            )
        )
        with pytest.raises(REFUSED):
            await one.backend.save(draft("a"))
        one.target.renewing.open()
        await until(lambda: one.service._replicator.session.fenced)


async def test_backfill_continues_after_contested_lease(place: Place) -> None:
    """PostgreSQL was set back to before this server claimed it: there is no other server."""
    backup = Backup(place.dsn)
    drafts = [draft(f"m-{number:03}") for number in range(60)]
    async with held(place) as one:
        await one.backend.bulk_save(drafts, OnConflict.REPLACE)
        await walk_to(one.control, Phase.DUAL_WRITE)
        await backup.take()
    async with held(place) as one:
        one.target.copies_until_held = 2
        await change(one.control, Phase.BACKFILL)
        await one.target.copying.reached.wait()
        one.target.renewing.close()
        await backup.restore(lease_seconds=0.5)
        one.target.copying.open()
        await until(lambda: one.service._replicator.session.guard.contested is not None)
        one.target.renewing.open()
        await unblocked(one.control)
        assert len(await one.target.batch_get([one.id for one in drafts])) == len(drafts)
