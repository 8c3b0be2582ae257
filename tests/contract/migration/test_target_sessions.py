"""Sessions that a migration target applies."""

from __future__ import annotations

import pytest

from sagastore_server.storage.errors import SessionNotFoundError, TargetSetBackError
from sagastore_server.storage.replication import (
    AuxiliaryRows,
    BackfillMark,
    Entry,
    ExtraValue,
    MigrationTarget,
)
from sagastore_server.storage.sessions import RecordKind, Session
from tests.support.drafts import NOW
from tests.support.migration_values import LEASE, message, tally

ROW = Session(
    "s-1", "a title", '{"k": 1}', True, 2, (("google", 1), ("openai", 1)),
    NOW, 4, "the beginning", NOW + 9, 5, NOW - 1, NOW + 10, 7, 0,
)  # fmt: skip


def entry(session: Session | None, sequence: int, *, forced: bool = False) -> Entry:
    """Return the entry of a change of the session."""
    key = "s-1" if session is None else session.session_id
    return Entry(sequence, key, None, 0, forced, NOW, RecordKind.SESSION, session)


async def row_of(target: MigrationTarget) -> Session | None:
    return (await target.sessions_by_id(["s-1"])).get("s-1")


async def test_session_is_stored_field_by_field(target: MigrationTarget) -> None:
    await target.apply(LEASE, [entry(ROW, 7)])
    assert await row_of(target) == ROW
    assert await target.get_session("s-1") == ROW
    page = await target.scan_sessions(None, "z", 10)
    assert (page.sessions, await target.count_sessions()) == ([ROW], 1)
    gone = ROW._replace(explicit=False, message_count=0, providers=(), first_time=None,
                        last_time=None, first_sequence=0, first_message="", last_sequence=0,
                        title="", metadata="{}", revision=8)  # fmt: skip
    await target.apply(LEASE, [entry(gone, 8)])
    assert await row_of(target) == gone
    with pytest.raises(SessionNotFoundError):
        await target.get_session("s-1")


async def test_message_and_its_session_are_one_transaction(target: MigrationTarget) -> None:
    one = message("a", 7)
    saved = Entry(7, "a", one, 0, False, NOW, RecordKind.MESSAGE, ROW)
    with pytest.raises(TargetSetBackError):
        await target.apply(LEASE, [saved], after=99)
    assert await row_of(target) is None
    await target.apply(LEASE, [saved])
    assert (await target.get("a"), await row_of(target)) == (one, ROW)


async def test_older_session_never_replaces_a_newer_one(target: MigrationTarget) -> None:
    await target.apply(LEASE, [entry(ROW, 7)])
    await target.apply(LEASE, [entry(ROW._replace(title="older", revision=6), 8)])
    assert await row_of(target) == ROW
    newer = ROW._replace(title="newer", revision=9)
    await target.apply(LEASE, [entry(newer, 9), entry(newer, 10)])
    assert await row_of(target) == newer


async def test_forced_session_replaces_any(target: MigrationTarget) -> None:
    await target.apply(LEASE, [entry(ROW, 7)])
    older = ROW._replace(title="the truth", revision=3)
    await target.apply(LEASE, [entry(older, 8, forced=True)])
    assert await row_of(target) == older
    await target.apply(LEASE, [entry(None, 9, forced=True)])
    assert await row_of(target) is None


async def test_carry_compares_the_mark(target: MigrationTarget) -> None:
    before = BackfillMark()
    first, second = before._replace(attempt=1), before._replace(attempt=2)
    extras = AuxiliaryRows(extras=[ExtraValue("m", "name", "1")])
    await target.carry(LEASE, AuxiliaryRows(), first, before, first=True)
    for other in (before, second):
        with pytest.raises(TargetSetBackError):
            await target.carry(LEASE, extras, second, other, first=False)
    assert await target.carried() == tally(AuxiliaryRows())
    await target.carry(LEASE, extras, second, first, first=False)
    assert await target.carried() == tally(extras)
    assert (await target.renew(LEASE)).backfill == second
