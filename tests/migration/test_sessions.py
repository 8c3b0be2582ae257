"""Sessions through the phases: replicated, verified, repaired, and kept across a restart."""

from __future__ import annotations

import asyncio

import pytest

from sagastore_server.migration.auxiliary_rows import carry_all, finish_carrying
from sagastore_server.runtime.session_deletion import SessionDeletion
from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import (
    SessionExistsError,
    SessionNotFoundError,
    SessionRevisionMismatchError,
    TargetSetBackError,
)
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Scan
from sagastore_server.storage.replication import AuxiliaryRows
from sagastore_server.storage.sessions import Session, SessionCriteria, SessionScan
from tests.migration.conftest import Place
from tests.support.drafts import NOW, draft
from tests.support.migrating_service import backfilled, opened_live, walk_to
from tests.support.postgres import execute


async def all_sessions(backend: StorageBackend) -> list[Session]:
    page = await backend.list_sessions(SessionCriteria(), SessionScan(False, 500))
    assert not page.more
    return page.sessions


async def delete_session(backend: StorageBackend, session_id: str) -> int:
    return await SessionDeletion(backend, Supervisor()).delete(session_id)


async def change_some(backend: StorageBackend, name: str) -> None:
    """Append, rename, truncate and delete, in sessions that bear ``name``."""
    turn = [draft(f"{name}-{n}", session_id=name, timestamp=NOW + 7) for n in (3, 1, 2)]
    first = await backend.append(name, turn, if_revision=0)
    await backend.append(name, [draft(f"{name}-4", session_id=name)], if_revision=first.revision)
    await backend.update_session(name, title=f"title of {name}", metadata='{"a": 1}')
    await backend.truncate_session(name, drop_last=1)
    other = f"{name}-other"
    await backend.append(other, [draft(f"{other}-{n}", session_id=other) for n in range(3)])
    await backend.save(draft(f"{other}-0", session_id=f"{name}-moved"))
    assert await delete_session(backend, other) == 2


async def check_some(backend: StorageBackend, name: str) -> None:
    page = await backend.list_session(name, Scan(False, 10))
    assert [one.id for one in page.messages] == [f"{name}-4", f"{name}-3", f"{name}-1"]
    found = await backend.get_session(name)
    assert (found.title, found.metadata, found.message_count) == (f"title of {name}", '{"a": 1}', 3)
    assert (await backend.get_session(f"{name}-moved")).message_count == 1
    with pytest.raises(SessionNotFoundError):
        await backend.get_session(f"{name}-other")


async def test_every_phase_reads_earlier_sessions(place: Place) -> None:
    names: list[str] = []
    for phase in Phase:
        async with opened_live(*place) as service:
            await walk_to(service.control, phase)
            names.append(phase.slug)
            await change_some(service.backend, phase.slug)
            before = await all_sessions(service.backend)
        async with opened_live(*place) as service:
            assert await all_sessions(service.backend) == before
            for name in names:
                await check_some(service.backend, name)


async def test_forward_and_back_keeps_sessions(place: Place) -> None:
    async with opened_live(*place) as service:
        control, backend = service.control, service.backend
        await change_some(backend, "one")
        await walk_to(control, Phase.READ_POSTGRES)
        await change_some(backend, "two")
        await walk_to(control, Phase.SQLITE_ONLY)
        await change_some(backend, "three")
        await backend.update_session("one", title="changed while PostgreSQL was left behind")
        await delete_session(backend, "two")
        before = await all_sessions(backend)
        await walk_to(control, Phase.READ_POSTGRES)
        status = await control.status()
        assert not status.reads_from_fallback
        assert await all_sessions(backend) == before
        await walk_to(control, Phase.POSTGRES_ONLY)
        assert await all_sessions(backend) == before


async def test_verification_finds_and_repairs_sessions(place: Place) -> None:
    async with opened_live(*place) as service:
        await change_some(service.backend, "one")
        await walk_to(service.control, Phase.BACKFILL)
        await backfilled(service.control)
        sql = (
            "SET session_replication_role = replica;"
            "UPDATE sessions SET message_count = 9 WHERE session_id = 'one';"
            "DELETE FROM sessions WHERE session_id = 'one-moved'"
        )
        await execute(place[1], sql)
        found = [
            mismatch
            async for progress in service.control.verify(repair=True)
            for mismatch in progress.mismatches
        ]
        assert {(one.id, one.kind, one.fields) for one in found} == {
            ("sessions/one", "DIFFERENT", ("message_count",)),
            ("sessions/one-moved", "MISSING", ()),
        }
        steps = [progress async for progress in service.control.verify(repair=False)]
        assert steps[-1].mismatch_count == 0


async def test_guarded_appends_lose_nothing_across_changes_of_phase(place: Place) -> None:
    writers, turns = 6, 12
    async with opened_live(*place) as service:
        backend = service.backend

        async def write(name: str) -> None:
            for turn in range(turns):
                session_id = f"s-{turn % 3}"
                messages = [
                    draft(f"{name}-{turn}-{n}", session_id=session_id, timestamp=NOW)
                    for n in (0, 1)
                ]
                while True:
                    try:
                        guard = (await backend.get_session(session_id)).revision
                    except SessionNotFoundError:
                        guard = 0
                    try:
                        await backend.append(session_id, messages, guard)
                    except (SessionRevisionMismatchError, SessionExistsError):
                        continue
                    break

        writing = asyncio.gather(*(write(f"w{n}") for n in range(writers)))
        for phase in (Phase.BACKFILL, Phase.READ_POSTGRES, Phase.BACKFILL, Phase.POSTGRES_ONLY):
            await walk_to(service.control, phase)
        await writing
        sessions = await all_sessions(backend)
        assert sum(one.message_count for one in sessions) == 2 * writers * turns
        for session in sessions:
            page = await backend.list_session(session.session_id, Scan(False, 500))
            ids = [one.id for one in page.messages]
            assert len(ids) == session.message_count
            assert all(a[:-1] == b[:-1] for a, b in zip(ids[::2], ids[1::2], strict=True))


async def test_late_copy_of_auxiliary_rows_changes_nothing(place: Place) -> None:
    """A transaction of an earlier attempt, executed late, is refused."""
    async with opened_live(*place) as service:
        await walk_to(service.control, Phase.BACKFILL)
        await backfilled(service.control)
        session, target, source = service._session, service._target, service._source
        before = session.mark
        async with session.marking:
            during = await carry_all(source, session)
            assert session.mark == during
            assert (during.carried, during.attempt) == (False, before.attempt + 1)
            for mark in (before, before._replace(carried=False)):
                with pytest.raises(TargetSetBackError):
                    await target.carry(session.lease, AuxiliaryRows(), during, mark, first=True)
            await finish_carrying(session, during)
        with pytest.raises(TargetSetBackError):
            await target.carry(session.lease, AuxiliaryRows(), during, during, first=True)
        assert session.mark.carried
        assert await source.carried() == await target.carried()
