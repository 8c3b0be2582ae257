"""One service through the phases, forward and back, and what each of them keeps."""

from __future__ import annotations

import asyncio

import pytest

from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import NotFoundError
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import Message, OnConflict, Store
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Scan
from tests.migration.conftest import Place
from tests.support.drafts import NOW, draft, found
from tests.support.migrating_service import backfilled, change, live, opened_live, walk_to

FORWARD = [Phase.DUAL_WRITE, Phase.BACKFILL, Phase.READ_POSTGRES, Phase.POSTGRES_ONLY]


async def all_of(backend: StorageBackend) -> list[Message]:
    messages: list[Message] = []
    last = await backend.last_id()
    while last is not None:
        after = messages[-1].id if messages else ""
        page = await backend.scan_ids(after, last, 1000)
        messages += page.messages
        if not page.more:
            break
    return messages


async def write_some(backend: StorageBackend, name: str) -> None:
    """Save, replace, delete and save again, under ids that bear ``name``."""
    drafts = [draft(f"{name}-{n}", f"the {name} fox {n}", timestamp=NOW + n) for n in range(8)]
    await backend.bulk_save(drafts, OnConflict.REPLACE)
    await backend.save(draft(f"{name}-0", f"replaced in {name}"))
    await backend.delete(f"{name}-1")
    await backend.delete(f"{name}-2")
    await backend.save(draft(f"{name}-2", f"again in {name}", tags=("back",)))


async def check_some(backend: StorageBackend, name: str) -> None:
    assert (await backend.get(f"{name}-0")).content == f"replaced in {name}"
    with pytest.raises(NotFoundError):
        await backend.get(f"{name}-1")
    assert (await backend.get(f"{name}-2")).tags == ("back",)
    listed = await backend.batch_get([f"{name}-{n}" for n in range(8)])
    assert set(listed) == {f"{name}-{n}" for n in range(8) if n != 1}
    assert await found(backend, f"again {name.split('-', maxsplit=1)[0]}") != []


async def test_every_phase_reads_earlier_writes(place: Place) -> None:
    names: list[str] = []
    async with opened_live(*place) as service:
        for phase in Phase:
            await walk_to(service.control, phase)
            names.append(phase.slug)
            await write_some(service.backend, phase.slug)
            for name in names:
                await check_some(service.backend, name)
        page = await service.backend.list_session("s-1", Scan(False, 500))
        assert len(page.messages) == 7 * len(names)


async def test_every_phase_reads_earlier_writes_after_restart(place: Place) -> None:
    names: list[str] = []
    for phase in Phase:
        async with opened_live(*place) as service:
            await walk_to(service.control, phase)
            names.append(phase.slug)
            await write_some(service.backend, phase.slug)
        async with opened_live(*place) as service:
            assert service.phase is phase
            for name in names:
                await check_some(service.backend, name)


async def test_forward_and_back_and_forward_again(place: Place) -> None:
    """What changes while PostgreSQL is left behind is not missed when it is taken up again."""
    async with opened_live(*place) as service:
        control, backend = service.control, service.backend
        await write_some(backend, "one")
        await walk_to(control, Phase.READ_POSTGRES)
        await write_some(backend, "two")
        await walk_to(control, Phase.SQLITE_ONLY)
        await write_some(backend, "three")
        await backend.delete("one-5")
        await backend.save(draft("two-6", "changed while PostgreSQL was left behind"))
        before = await all_of(backend)
        await walk_to(control, Phase.READ_POSTGRES)
        assert await all_of(backend) == before
        status = await control.status()
        assert status.last_verification is not None
        assert status.last_verification.mismatch_count == 0
        assert not status.reads_from_fallback
        await walk_to(control, Phase.POSTGRES_ONLY)
        assert await all_of(backend) == before


async def test_postgresql_equals_sqlite_field_by_field(place: Place) -> None:
    async with opened_live(*place) as service:
        await write_some(service.backend, "old")
        await walk_to(service.control, Phase.BACKFILL)
        await write_some(service.backend, "new")
        sqlite = await all_of(service.backend)
        await walk_to(service.control, Phase.READ_POSTGRES)
        assert await all_of(service.backend) == sqlite


async def test_revisions_increase_across_phases(place: Place) -> None:
    async with opened_live(*place) as service:
        revision = 0
        for phase in Phase:
            await walk_to(service.control, phase)
            for text in ("a", "b"):
                saved = await service.backend.save(draft("m", f"{text} in {phase.slug}"))
                assert saved.revision > revision
                revision = saved.revision


@pytest.mark.parametrize("phase", list(Phase))
async def test_durable_on_follows_the_phase(place: Place, phase: Phase) -> None:
    async with opened_live(*place) as service:
        await service.backend.save(draft("old"))
        await walk_to(service.control, phase)
        on_both = await service.backend.save(draft("new"), everywhere_within=20)
        assert on_both.durable_on == phase.stores
        usual = (await service.backend.save(draft("other"))).durable_on
        if phase is Phase.READ_POSTGRES:
            assert usual == (Store.SQLITE, Store.POSTGRESQL)
        else:
            assert usual == (phase.stores[0],)


async def test_everywhere_covers_rows_not_copied_yet(place: Place) -> None:
    async with opened_live(*place) as service:
        await service.backend.save(draft("old"))
        await walk_to(service.control, Phase.DUAL_WRITE)
        again = await service.backend.save(draft("old"), everywhere_within=20)
        assert not again.created
        assert again.durable_on == (Store.SQLITE, Store.POSTGRESQL)


async def test_phase_changes_lose_no_write(place: Place) -> None:
    async with opened_live(*place) as service:
        acknowledged: dict[str, str] = {}
        stop = asyncio.Event()

        async def write(worker: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                key = f"w{worker}-{number % 50}"
                text = f"text {number} of {worker}"
                await service.backend.save(draft(key, text))
                acknowledged[key] = text
                assert (await service.backend.get(key)).content == text

        workers = [asyncio.create_task(write(number)) for number in range(8)]
        for phase in [*FORWARD[:3], Phase.BACKFILL, Phase.DUAL_WRITE, Phase.SQLITE_ONLY]:
            await walk_to(service.control, phase)
        await walk_to(service.control, Phase.POSTGRES_ONLY)
        stop.set()
        await asyncio.gather(*workers)
        messages = {message.id: message.content for message in await all_of(service.backend)}
        assert messages == acknowledged


async def test_change_to_current_phase_succeeds(place: Place) -> None:
    async with opened_live(*place) as service:
        await walk_to(service.control, Phase.BACKFILL)
        epoch = (await service.control.status()).epoch
        await change(service.control, Phase.BACKFILL)
        assert (await service.control.status()).epoch == epoch


async def test_dry_run_changes_nothing(place: Place) -> None:
    async with opened_live(*place) as service:
        before = await service.control.status()
        after = await service.control.change_phase(
            Phase.DUAL_WRITE, dry_run=True, accept_quarantine=True
        )
        assert after.phase is Phase.SQLITE_ONLY
        assert after.epoch == before.epoch
    async with opened_live(*place) as service:
        assert service.phase is Phase.SQLITE_ONLY


async def test_backfill_can_be_paused_and_throttled(place: Place) -> None:
    async with opened_live(*place) as service:
        drafts = [draft(f"m-{n:04}", timestamp=NOW + n) for n in range(300)]
        await service.backend.bulk_save(drafts, OnConflict.REPLACE)
        await walk_to(service.control, Phase.DUAL_WRITE)
        await service.control.change_phase(Phase.BACKFILL, dry_run=False, accept_quarantine=False)
        paused = await service.control.control_backfill(
            paused=True, batch_size=10, max_rows_per_second=100_000
        )
        assert paused.backfill.state in {BackfillState.PAUSED, BackfillState.DONE}
    async with opened_live(*place) as service:
        status = await service.control.status()
        assert status.backfill.state in {BackfillState.PAUSED, BackfillState.DONE}
        await service.control.control_backfill(
            paused=False, batch_size=None, max_rows_per_second=None
        )
        await backfilled(service.control)
        status = await service.control.status()
        assert status.backfill.copied == status.backfill.total == 300


async def test_unopened_service_can_be_closed(place: Place) -> None:
    service: MigratingService = live(*place)
    await service.backend.close()
