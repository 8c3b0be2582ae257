from __future__ import annotations

import itertools

import pytest

from sagastore_server.search.parser import parse_query
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import NotFoundError, RevisionMismatchError
from sagastore_server.storage.files import NewFile
from sagastore_server.storage.limits import MAX_PAGE_BYTES
from sagastore_server.storage.model import Message, Page, Position
from sagastore_server.storage.query import Criteria, Scan
from tests.support.drafts import NOW, draft, found, save_all, walk
from tests.support.reference_search import stretch

MAX_INT64 = 2**63 - 1

# In UTF-16 the emoji, a pair of surrogates, would stand before U+FFEE; in UTF-8, by
# which ids compare, it stands behind. "B" before "a", "a" before "a1", "ä" decomposed
# before composed.
TRICKY = ["", "B", "a", "a1", "a\u0308", "b", "\u00e4", "\u4e00", "\uffee", "\U0001f600"]
IDS = [f"id{name}" for name in TRICKY]


async def test_get_of_missing_message_is_not_found(backend: StorageBackend) -> None:
    await backend.save(draft("abc"))
    for missing in ("ABC", "abc ", "ab", "abcd", "%", "*", "'"):
        with pytest.raises(NotFoundError) as caught:
            await backend.get(missing)
        assert caught.value.message_id == missing


async def test_delete_removes_message(backend: StorageBackend) -> None:
    await save_all(backend, [draft("a"), draft("b")])
    await backend.delete("a")
    with pytest.raises(NotFoundError):
        await backend.get("a")
    assert list(await backend.batch_get(["a", "b"])) == ["b"]
    assert [message.id for message in await _listed(backend)] == ["b"]
    assert await found(backend, "quick") == ["b"]
    with pytest.raises(NotFoundError) as caught:
        await backend.delete("a")
    assert caught.value.message_id == "a"


async def test_delete_checks_if_revision(backend: StorageBackend) -> None:
    first = (await backend.save(draft())).revision
    second = (await backend.save(draft(content="two"))).revision
    with pytest.raises(RevisionMismatchError) as caught:
        await backend.delete("m-1", if_revision=first)
    assert (caught.value.expected, caught.value.stored) == (first, second)
    assert (await backend.get("m-1")).content == "two"
    await backend.delete("m-1", if_revision=second)
    with pytest.raises(NotFoundError):
        await backend.delete("m-1", if_revision=second)


async def test_batch_get_returns_found_messages(backend: StorageBackend) -> None:
    await save_all(backend, [draft(name) for name in IDS])
    assert await backend.batch_get([]) == {}
    assert await backend.batch_get(["missing"]) == {}
    stored = await backend.batch_get([*IDS, "missing", *IDS[:2]])
    assert sorted(stored) == sorted(IDS)
    assert all(key == message.id for key, message in stored.items())
    assert stored["id"] == await backend.get("id")


async def test_batch_get_of_thousand_ids(backend: StorageBackend) -> None:
    ids = [f"{number}-{'x' * 120}" for number in range(1000)]
    await save_all(backend, [draft(name) for name in ids])
    assert sorted(await backend.batch_get(ids)) == sorted(ids)


async def _listed(backend: StorageBackend, session_id: str = "s-1") -> list[Message]:
    page = await backend.list_session(session_id, Scan(False, 500))
    assert not page.more
    return page.messages


async def test_list_is_ordered_by_time_then_sequence(backend: StorageBackend) -> None:
    drafts = [draft(name, timestamp=NOW) for name in reversed(IDS)]
    drafts += [draft("later", timestamp=NOW + 1), draft("before 1970", timestamp=-1)]
    drafts += [draft("1970", timestamp=0), draft("earlier", timestamp=NOW - 1)]
    await save_all(backend, drafts)
    expected = ["before 1970", "1970", "earlier", *reversed(IDS), "later"]
    assert [message.id for message in await _listed(backend)] == expected
    newest = await backend.list_session("s-1", Scan(True, 500))
    assert [message.id for message in newest.messages] == expected[::-1]


async def test_list_returns_only_its_session(backend: StorageBackend) -> None:
    sessions = [None, "", "s", "S", "s ", "ß", "ss", "%", "s-1", "\U0001f600"]
    await save_all(
        backend,
        [draft(f"m-{at}", session_id=session) for at, session in enumerate(sessions)],
    )
    for at, session in enumerate(sessions):
        if session is not None:
            assert [message.id for message in await _listed(backend, session)] == [f"m-{at}"]
            page = await backend.search(Criteria(session_id=session), Scan(False, 10))
            assert [message.id for message in page.messages] == [f"m-{at}"]
    assert await _listed(backend, "unknown") == []
    assert len((await backend.search(Criteria(), Scan(False, 50))).messages) == len(sessions)


CRITERIA = [
    Criteria(),
    Criteria(session_id="s-1"),
    Criteria(parse_query("quick")),
    Criteria(parse_query("-zebra")),
    Criteria(tags=("t",)),
    None,
]


@pytest.mark.parametrize("criteria", CRITERIA, ids=["all", "session", "word", "not", "tag", "list"])
async def test_every_range_direction_and_limit(
    backend: StorageBackend, criteria: Criteria | None
) -> None:
    """All combinations of start, end, direction and limit."""
    names = ["a", "a1", "\uffee", "\U0001f600"]
    drafts = [
        draft(name + str(at), timestamp=NOW + at, tags=("t",)) for at in (0, 1) for name in names
    ]
    await save_all(backend, drafts)
    everything = list((await backend.batch_get([one.id for one in drafts])).values())
    second, last = (one.sequence for one in (everything[1], everything[-1]))
    ends = [None, Position(NOW - 1, last), Position(NOW, 0), Position(NOW, second)]
    ends += [Position(NOW, last), Position(NOW + 1, last - 1), Position(NOW + 2, 0)]
    for newest_first, after, until in itertools.product([False, True], ends, ends):
        expected = stretch(everything, Scan(newest_first, 100, after, until))
        for limit in (1, 2, 3, 8, 9):
            scan = Scan(newest_first, limit, after, until)
            if criteria is None:
                page = await backend.list_session("s-1", scan)
            else:
                page = await backend.search(criteria, scan)
            assert page == Page(expected[:limit], len(expected) > limit), scan


async def test_pages_have_no_gap_or_overlap(backend: StorageBackend) -> None:
    drafts = [draft(f"m-{number:03}", timestamp=NOW + number // 7) for number in range(60)]
    await save_all(backend, drafts)
    ids = [one.id for one in drafts]
    for limit in (1, 7, 20, 30, 59, 60, 61):
        for newest_first in (False, True):
            pages = await walk(backend, Criteria(), newest_first=newest_first, limit=limit)
            seen = [message.id for page in pages for message in page.messages]
            assert seen == (ids[::-1] if newest_first else ids)
            assert len(pages) == -(-60 // limit)


@pytest.mark.parametrize("way", ["list", "search", "words", "ids", "sequences"])
async def test_page_of_large_messages_ends_early(backend: StorageBackend, way: str) -> None:
    content = "word " + "\xe9" * 99_000
    ids = [f"m-{number:02}" for number in range(20)]
    await save_all(backend, [draft(name, content, timestamp=NOW) for name in ids])
    seen: list[str] = []
    after, more = None, True
    while more:
        if way == "list":
            page = await backend.list_session("s-1", Scan(False, 20, after))
        elif way == "ids":
            page = await backend.scan_ids(seen[-1] if seen else "", "z", 20)
        elif way == "sequences":
            page = await backend.scan_sequences(after.sequence if after else 0, MAX_INT64, 20)
        else:
            criteria = Criteria(parse_query("word") if way == "words" else None)
            page = await backend.search(criteria, Scan(False, 20, after))
        sizes = [message.size for message in page.messages]
        assert 1 < len(sizes) < 20
        assert sum(sizes) <= MAX_PAGE_BYTES
        seen += [message.id for message in page.messages]
        after, more = page.messages[-1].position, page.more
    assert seen == ids


async def test_largest_message_fits_into_page(backend: StorageBackend) -> None:
    large = draft(
        "m-1",
        "\U0001f600" * 1_000_000,
        tags=["\U0001f600" * 256] * 512,
        metadata='{"k": "' + "v" * 1_048_500 + '"}',
    )
    await save_all(backend, [large, large._replace(id="m-2")])
    page = await backend.list_session("s-1", Scan(False, 10))
    assert [message.id for message in page.messages] == ["m-1"]
    assert page.more
    page = await backend.list_session("s-1", Scan(False, 10, page.messages[-1].position))
    assert [message.id for message in page.messages] == ["m-2"]
    assert not page.more


async def test_quarantine_of_a_new_store_is_empty(backend: StorageBackend) -> None:
    assert await backend.quarantine(0, 100) == []
    assert await backend.quarantine_count() == 0


async def test_health_reports_store_state(backend: StorageBackend) -> None:
    health = await backend.health()
    assert (health.healthy, health.detail) == (True, "")
    assert health.schema_version > 0
    await save_all(backend, [draft(f"m-{number}") for number in range(3)])
    assert (await backend.health()).messages in {-1, 0, 3}


async def test_health_counts_sessions_and_files(backend: StorageBackend) -> None:
    await save_all(backend, [draft("m-1", session_id="s-1"), draft("m-2", session_id="s-2")])
    await backend.update_session("s-3", title="planned")
    await backend.save_file(NewFile("f-1", "n", "p", "t", "", (), 0, NOW, "{}"))
    await backend.delete("m-2")
    # Counts are reused for as long as counting took, many times over; the first is taken here.
    health = await backend.health()
    assert (health.messages, health.sessions, health.files) == (1, 2, 1)
