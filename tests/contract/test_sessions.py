from __future__ import annotations

import asyncio

import pytest

from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import (
    InvalidRequestError,
    NotFoundError,
    ResponseTooLargeError,
    SessionExistsError,
    SessionNotFoundError,
    SessionRevisionMismatchError,
)
from sagastore_server.storage.query import Scan
from sagastore_server.storage.sessions import Session, SessionCriteria, SessionScan
from tests.support.drafts import NOW, draft, save_all


async def ids_of(backend: StorageBackend, session_id: str = "s-1") -> list[str]:
    page = await backend.list_session(session_id, Scan(False, 500))
    return [one.id for one in page.messages]


async def listing(
    backend: StorageBackend, *, oldest_first: bool = False, limit: int = 3, **criteria: object
) -> list[str]:
    """Return the sessions of all pages."""
    found: list[str] = []
    scan = SessionScan(oldest_first, limit)
    wanted = SessionCriteria(**criteria)  # type: ignore[arg-type]
    while True:
        page = await backend.list_sessions(wanted, scan)
        found += [one.session_id for one in page.sessions]
        if not page.more:
            return found
        scan = scan._replace(after=page.sessions[-1].position)


async def delete_whole(backend: StorageBackend, session_id: str) -> int:
    await backend.begin_session_deletion(session_id)
    deleted = 0
    while True:
        step = await backend.delete_session_step(session_id)
        deleted += step.deleted
        if step.done:
            return deleted


async def test_append_is_one_turn_in_order(backend: StorageBackend) -> None:
    turn = [draft(name, f"text {name}") for name in ("z", "a", "m")]
    result = await backend.append("s-1", turn)
    assert [one.id for one in result.saved] == ["z", "a", "m"]
    assert all(one.created for one in result.saved)
    first = result.saved[0].sequence
    assert [one.sequence for one in result.saved] == [first, first + 1, first + 2]
    assert await ids_of(backend) == ["z", "a", "m"]
    assert result.session == await backend.get_session("s-1")
    assert result.session.message_count == 3
    assert result.session.first_message == "text z"
    assert result.session.last_sequence == result.saved[-1].sequence


async def test_append_again_changes_nothing(backend: StorageBackend) -> None:
    turn = [draft("a", timestamp=None), draft("b", timestamp=None)]
    first = await backend.append("s-1", turn)
    again = await backend.append("s-1", turn)
    assert again.session == first.session
    assert [one._replace(created=True) for one in again.saved] == list(first.saved)
    assert not any(one.created for one in again.saved)


async def test_guards_of_append(backend: StorageBackend) -> None:
    first = await backend.append("s-1", [draft("a")], if_revision=0)
    with pytest.raises(SessionExistsError) as exists:
        await backend.append("s-1", [draft("b")], if_revision=0)
    assert exists.value.revision == first.revision
    second = await backend.append("s-1", [draft("b")], if_revision=first.revision)
    with pytest.raises(SessionRevisionMismatchError) as stale:
        await backend.append("s-1", [draft("c"), draft("a", "new")], if_revision=first.revision)
    assert stale.value.stored == second.revision
    assert await ids_of(backend) == ["a", "b"]
    assert (await backend.get("a")).content == draft("a").content
    with pytest.raises(SessionRevisionMismatchError) as missing:
        await backend.append("s-2", [draft("c", session_id="s-2")], if_revision=7)
    assert missing.value.stored is None


async def test_every_change_of_a_message_changes_the_revision(backend: StorageBackend) -> None:
    revisions = [(await backend.append("s-1", [draft("a"), draft("b")])).revision]

    async def note() -> None:
        revisions.append((await backend.get_session("s-1")).revision)

    await backend.save(draft("c"))
    await note()
    await backend.save(draft("c", "other"))
    await note()
    await backend.delete("c")
    await note()
    await backend.save(draft("b", session_id="s-2"))
    await note()
    await backend.update_session("s-1", title="t")
    await note()
    assert revisions == sorted(set(revisions))
    await backend.update_session("s-1", title="t")
    await backend.save(draft("a"))
    await note()
    assert revisions[-1] == revisions[-2]


async def test_values_follow_the_messages(backend: StorageBackend) -> None:
    await save_all(
        backend,
        [
            draft("m", "middle", provider="openai", timestamp=NOW + 5),
            draft("l", "last", provider="google", timestamp=NOW + 9),
            draft("f", "x" * 300, provider="openai", timestamp=NOW + 1),
        ],
    )
    found = await backend.get_session("s-1")
    assert (found.message_count, found.first_time, found.last_time) == (3, NOW + 1, NOW + 9)
    assert found.first_message == "x" * 200
    assert found.providers == (("google", 1), ("openai", 2))
    await backend.delete("f")
    await backend.delete("l")
    found = await backend.get_session("s-1")
    assert (found.message_count, found.first_time, found.last_time) == (1, NOW + 5, NOW + 5)
    assert (found.first_message, found.providers) == ("middle", (("openai", 1),))
    assert found.last_sequence == found.first_sequence == (await backend.get("m")).sequence
    await backend.save(draft("m", "moved", provider="x", timestamp=NOW - 7))
    found = await backend.get_session("s-1")
    assert (found.first_time, found.last_time, found.first_message) == (NOW - 7, NOW - 7, "moved")
    await backend.save(draft("m", "moved", provider="x", session_id="s-2"))
    with pytest.raises(SessionNotFoundError):
        await backend.get_session("s-1")
    assert (await backend.get_session("s-2")).providers == (("x", 1),)


async def test_session_without_messages_exists_if_it_was_created(backend: StorageBackend) -> None:
    made = await backend.update_session("s-1", title="a title", metadata='{"k": 1}')
    assert (made.title, made.metadata, made.message_count) == ("a title", '{"k": 1}', 0)
    assert (made.first_time, made.last_time, made.last_sequence) == (None, None, 0)
    await backend.save(draft("a"))
    await backend.delete("a")
    found = await backend.get_session("s-1")
    assert (found.title, found.created_at) == ("a title", made.created_at)
    with pytest.raises(SessionExistsError):
        await backend.update_session("s-1", title="b", if_revision=0)
    changed = await backend.update_session("s-1", metadata="{}", if_revision=found.revision)
    assert (changed.title, changed.metadata) == ("a title", "{}")
    await backend.save(draft("b", session_id="s-2"))
    await backend.delete("b")
    with pytest.raises(SessionNotFoundError):
        await backend.get_session("s-2")
    assert await listing(backend) == ["s-1"]


async def test_session_with_empty_id(backend: StorageBackend) -> None:
    await backend.append("", [draft("a", session_id="")])
    await backend.save(draft("b", session_id=None))
    assert (await backend.get_session("")).message_count == 1
    assert await listing(backend) == [""]


async def test_list_is_ordered_by_activity(backend: StorageBackend) -> None:
    names = [f"s-{number}" for number in range(10)]
    for place, name in enumerate(names):
        await backend.append(
            name, [draft(f"m-{name}", session_id=name, timestamp=NOW + place // 2)]
        )
    expected = sorted(names, key=lambda name: (int(name[2:]) // 2, name), reverse=True)
    for limit in (1, 3, 10, 11):
        assert await listing(backend, limit=limit) == expected
        assert await listing(backend, limit=limit, oldest_first=True) == expected[::-1]
    await backend.append("s-0", [draft("late", session_id="s-0", timestamp=NOW + 100)])
    assert (await listing(backend))[0] == "s-0"
    await backend.delete("late")
    assert await listing(backend) == expected


async def test_conditions_of_a_list(backend: StorageBackend) -> None:
    for number in range(6):
        name = f"s-{number}"
        provider = ("openai", "google")[number % 2]
        message = draft(f"m-{number}", provider=provider, session_id=name, timestamp=NOW + number)
        await backend.append(name, [message])
        await backend.update_session(
            name, title=("50% ä", "other")[number // 3], metadata=f'{{"n": {number}, "k": [1]}}'
        )
    assert await listing(backend, start=NOW + 4) == ["s-5", "s-4"]
    assert await listing(backend, end=NOW + 2) == ["s-1", "s-0"]
    assert await listing(backend, provider="google") == ["s-5", "s-3", "s-1"]
    assert await listing(backend, provider="oogle") == []
    assert await listing(backend, metadata='{"n": 4}') == ["s-4"]
    assert len(await listing(backend, metadata='{"k": []}')) == 6
    assert await listing(backend, title_prefix="50% \u00e4") == ["s-2", "s-1", "s-0"]
    assert await listing(backend, title_prefix="5_") == []
    assert await listing(backend, title_prefix="OTHER") == []
    assert await listing(backend, title_prefix="other", provider="openai") == ["s-4"]


@pytest.mark.parametrize("count", [1, 2, 5, 9])
async def test_truncate_drops_the_last(backend: StorageBackend, count: int) -> None:
    names = [f"m-{number}" for number in range(5)]
    await backend.append("s-1", [draft(name, timestamp=NOW) for name in names])
    before = await backend.get_session("s-1")
    result = await backend.truncate_session("s-1", drop_last=count, if_revision=before.revision)
    kept = names[: max(0, 5 - count)]
    assert [one.id for one in result.removed] == names[len(kept) :]
    assert await ids_of(backend) == kept
    assert result.session.message_count == len(kept)
    assert result.session.revision > before.revision
    if kept:
        assert result.session == await backend.get_session("s-1")


async def test_truncate_keeps_through_a_message(backend: StorageBackend) -> None:
    await backend.append("s-1", [draft(name, timestamp=NOW) for name in "abcd"])
    await backend.save(draft("other", session_id="s-2"))
    with pytest.raises(NotFoundError):
        await backend.truncate_session("s-1", keep_through="none")
    with pytest.raises(NotFoundError):
        await backend.truncate_session("s-1", keep_through="other")
    with pytest.raises(SessionNotFoundError):
        await backend.truncate_session("s-9", drop_last=1)
    with pytest.raises(SessionRevisionMismatchError):
        await backend.truncate_session("s-1", drop_last=1, if_revision=1_000_000)
    result = await backend.truncate_session("s-1", keep_through="b")
    assert [one.id for one in result.removed] == ["c", "d"]
    again = await backend.truncate_session("s-1", keep_through="b")
    assert (again.removed, again.session) == ((), result.session)


async def test_truncate_refuses_too_much(backend: StorageBackend) -> None:
    await save_all(backend, [draft(f"m-{number:04}", "x") for number in range(1002)])
    with pytest.raises(InvalidRequestError):
        await backend.truncate_session("s-1", keep_through="m-0000")
    with pytest.raises(ResponseTooLargeError):
        await backend.truncate_session("s-1", drop_last=3, most_bytes=1000)
    assert (await backend.get_session("s-1")).message_count == 1002
    assert len((await backend.truncate_session("s-1", keep_through="m-0001")).removed) == 1000


async def test_deletion_of_a_session(backend: StorageBackend) -> None:
    await save_all(backend, [draft(f"m-{number:04}", "x") for number in range(1203)])
    await backend.save(draft("other", session_id="s-2"))
    before = await backend.update_session("s-1", title="t", metadata='{"a": 1}')
    with pytest.raises(SessionRevisionMismatchError):
        await backend.begin_session_deletion("s-1", before.revision + 1)
    assert await backend.unfinished_session_deletions(10) == []
    await backend.begin_session_deletion("s-1", before.revision)
    assert await backend.unfinished_session_deletions(10) == ["s-1"]
    assert (await backend.delete_session_step("s-1")).deleted > 0
    await backend.append("s-1", [draft("new", "written meanwhile")])
    deleted = 0
    while not (step := await backend.delete_session_step("s-1")).done:
        deleted += step.deleted
    assert await backend.unfinished_session_deletions(10) == []
    found = await backend.get_session("s-1")
    assert (found.message_count, found.title, found.metadata) == (1, "", "{}")
    assert found.first_message == "written meanwhile"
    assert await ids_of(backend) == ["new"]
    assert await delete_whole(backend, "s-1") == 1
    with pytest.raises(SessionNotFoundError):
        await backend.get_session("s-1")
    with pytest.raises(SessionNotFoundError):
        await backend.begin_session_deletion("s-1")
    assert await listing(backend) == ["s-2"]
    again = await backend.append("s-1", [draft("again")], if_revision=0)
    assert again.revision > found.revision


async def test_concurrent_appends_lose_nothing(backend: StorageBackend) -> None:
    async def writer(name: str) -> None:
        for turn in range(6):
            while True:
                try:
                    revision = (await backend.get_session("s-1")).revision
                except SessionNotFoundError:
                    revision = 0
                pair = [draft(f"{name}-{turn}-{at}", timestamp=NOW) for at in (0, 1)]
                try:
                    await backend.append("s-1", pair, if_revision=revision)
                except (SessionRevisionMismatchError, SessionExistsError):
                    continue
                break

    await asyncio.gather(*(writer(f"w{number}") for number in range(4)))
    listed = await ids_of(backend)
    assert len(listed) == (await backend.get_session("s-1")).message_count == 48
    for first, second in zip(listed[::2], listed[1::2], strict=True):
        assert first[:-1] == second[:-1]


async def test_sessions_survive_reopening(backend: StorageBackend) -> None:
    await backend.append("s-1", [draft("a")])
    made: Session = await backend.update_session("s-1", title="t")
    assert await backend.get_session("s-1") == made
