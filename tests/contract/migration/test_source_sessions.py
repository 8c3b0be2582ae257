"""Sessions in the journal of a migration source."""

from __future__ import annotations

from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import Entry, MigrationSource, MigrationState
from sagastore_server.storage.sessions import RecordKind
from tests.support.drafts import draft

FOLLOWING = MigrationState(Phase.DUAL_WRITE, 2)


def brief(entries: list[Entry]) -> list[tuple[RecordKind, str, str | None]]:
    """Return what entries name, and the session that comes with each."""
    return [
        (one.kind, one.id, None if one.session is None else one.session.session_id)
        for one in entries
    ]


async def test_message_brings_its_session_once(source: MigrationSource) -> None:
    await source.set_state(FOLLOWING)
    await source.append("s-1", [draft("a"), draft("b")])
    await source.save(draft("c", session_id=None))
    entries = await source.journal(0, 10)
    message = RecordKind.MESSAGE
    assert brief(entries) == [(message, "a", "s-1"), (message, "b", None), (message, "c", None)]
    assert entries[0].session == await source.get_session("s-1")
    later = await source.journal(entries[0].sequence, 10)
    assert brief(later)[0] == (message, "b", "s-1")


async def test_session_that_a_message_leaves_has_its_own_entry(source: MigrationSource) -> None:
    await source.append("s-1", [draft("a"), draft("b"), draft("c")])
    await source.set_state(FOLLOWING)
    start = source.committed
    await source.delete("a")
    await source.save(draft("b", session_id="s-2"))
    entries = await source.journal(start, 10)
    message, session = RecordKind.MESSAGE, RecordKind.SESSION
    assert brief(entries) == [
        (message, "a", None),
        (session, "s-1", "s-1"),
        (message, "b", "s-2"),
        (session, "s-1", None),
    ]
    assert entries[1].session == await source.get_session("s-1")
    assert [one.sequence for one in entries] == list(range(start + 1, start + 5))
    assert entries[3].sequence == (await source.get_session("s-1")).revision


async def test_update_of_a_session_is_journalled(source: MigrationSource) -> None:
    await source.set_state(FOLLOWING)
    made = await source.update_session("s-1", title="t")
    (entry,) = await source.journal(0, 10)
    assert (entry.kind, entry.id, entry.session) == (RecordKind.SESSION, "s-1", made)
    assert entry.sequence == made.revision == source.committed
    await source.update_session("s-1", title="t")
    assert source.committed == made.revision


async def test_all_sessions_can_be_journalled(source: MigrationSource) -> None:
    names = ["", *(f"s-{number:04}" for number in range(20))]
    for name in names:
        await source.update_session(name, title=name)
    await source.set_state(FOLLOWING)
    before = source.committed
    last = await source.journal_records()
    entries = await source.journal(before, 100)
    assert [one.id for one in entries] == names
    assert not any(one.forced for one in entries)
    assert entries[-1].sequence == last == source.committed
    found = [one.session for one in entries if one.session is not None]
    assert [one.session_id for one in found] == names


async def test_set_back_target_gets_every_session_again(source: MigrationSource) -> None:
    await source.set_state(FOLLOWING)
    await source.update_session("old", title="t")
    after = source.committed
    await source.append("new", [draft("a", session_id="new")])
    await source.delete("a")
    await source.prune(source.committed)
    last = source.committed
    await source.set_state(FOLLOWING, after)
    entries = await source.journal(after, 100)
    sessions = {one.id: one.sequence for one in entries if one.kind is RecordKind.SESSION}
    assert set(sessions) == {"old", "new"}
    # A session that has changed since keeps its place; an older one comes at the end.
    assert sessions["new"] <= last < sessions["old"]


async def test_requeued_session_is_forced(source: MigrationSource) -> None:
    await source.set_state(FOLLOWING)
    await source.update_session("s-1", title="t")
    await source.requeue(["s-1", "never"], RecordKind.SESSION)
    _, found, missing = await source.journal(0, 10)
    assert (found.forced, found.kind, found.session) == (True, RecordKind.SESSION, None)
    assert (missing.forced, missing.id, missing.session) == (True, "never", None)


async def test_rows_of_sessions_are_scanned(source: MigrationSource) -> None:
    assert await source.last_session() is None
    for name in ("", "b", "a"):
        await source.append(name, [draft(f"m{name}", session_id=name)])
    await source.delete("ma")
    assert await source.count_sessions() == 3
    assert await source.last_session() == "b"
    page = await source.scan_sessions(None, "b", 2)
    assert ([one.session_id for one in page.sessions], page.more) == (["", "a"], True)
    page = await source.scan_sessions("a", "b", 2)
    assert ([one.session_id for one in page.sessions], page.more) == (["b"], False)
    assert set(await source.sessions_by_id(["a", "", "x"])) == {"a", ""}
