"""The verifier on a real file and a real database: it finds what differs, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from sagastore_server.migration.diff import Divergence, fields_that_differ
from sagastore_server.migration.verifier import MOST_LISTED, Verifier
from sagastore_server.storage.errors import NotFoundError, UnavailableError
from sagastore_server.storage.migration import Mismatch, VerifyProgress
from sagastore_server.storage.model import Message, OnConflict
from sagastore_server.storage.sessions import RecordKind
from tests.migration.conftest import Place
from tests.migration.following import Following, everything_is_expected, following, rows_of
from tests.support.drafts import NOW, draft, save_all
from tests.support.legacy_db import PLAIN, legacy_db
from tests.support.waiting import until

ODD = ("Z", "a", "z", "ä", "é", "\ud7ff", "\uffee", "\U00010000", "😀", "a b", "a'b", "%")
"""Ids whose order depends on whom one asks."""


@pytest.fixture
async def pair(place: Place) -> AsyncIterator[Following]:
    async with following(*place) as pair:
        yield pair


def verifier(pair: Following, **options: Any) -> Verifier:
    expected = options.pop("is_expected", everything_is_expected)
    return Verifier(pair.source, pair.target, pair.reach, expected, **options)


async def run(pair: Following, *, repair: bool = False, **options: Any) -> list[VerifyProgress]:
    progress = [one async for one in verifier(pair, **options).run(repair)]
    assert [one.done for one in progress] == [False] * (len(progress) - 1) + [True]
    return progress


def messages(*ids: str) -> list[tuple[RecordKind, str]]:
    return [(RecordKind.MESSAGE, one) for one in ids]


def listed(progress: list[VerifyProgress]) -> list[Mismatch]:
    return [found for one in progress for found in one.mismatches]


async def fill(pair: Following, count: int = 30) -> None:
    some = [
        draft(f"m-{n:05}", f"content {n}", tags=("t",), timestamp=NOW + n) for n in range(count)
    ]
    await save_all(pair.source, some)
    await pair.settle()


async def test_verifier_equal_stores(pair: Following) -> None:
    await fill(pair, 1234)
    checked = verifier(pair)
    with pytest.raises(RuntimeError, match="not ended"):
        _ = checked.result
    *_, last = [progress async for progress in checked.run(False)]
    assert last == VerifyProgress(1234, 1234, (), 0, 0, done=True)
    result = checked.result
    assert (result.compared, result.mismatch_count, result.repaired) == (1234, 0, 0)
    assert result.revision == pair.source.committed
    assert 0 < result.started_at <= result.finished_at


async def test_verifier_empty_stores(pair: Following) -> None:
    assert await run(pair) == [
        VerifyProgress(0, 0, (), 0, 0, done=False),
        VerifyProgress(0, 0, (), 0, 0, done=True),
    ]


def _copied(message_id: str, revision: int) -> str:
    return (
        f"INSERT INTO messages SELECT '{message_id}', provider, role, content, tags, timestamp, "
        f"metadata, session_id, created_at, {revision}, terms, search, {revision} FROM messages "
        "WHERE id = 'm-00007'"
    )


PLANTED: dict[str, tuple[str, Mismatch]] = {
    "missing": ("DELETE FROM messages WHERE id = 'm-00007'", Mismatch("m-00007", "MISSING", ())),
    "extra": (_copied("m-00007a", 3), Mismatch("m-00007a", "EXTRA", ())),
    "extra at the end": (_copied("z", 1_000_000), Mismatch("z", "EXTRA", ())),
    **{
        field: (
            f"UPDATE messages SET {field} = {value} WHERE id = 'm-00007'",
            Mismatch("m-00007", "DIFFERENT", (field,)),
        )
        for field, value in {
            "provider": "'groq'",
            "role": "'tool'",
            "content": "content || ' '",
            "tags": """'["t", "u"]'""",
            "timestamp": "timestamp + interval '1 microsecond'",
            "metadata": """'{"a": 1}'""",
            "session_id": "NULL",
            "sequence": "sequence - 1",
            "created_at": "NULL",
            "revision": "revision + 1",
        }.items()
    },
}


@pytest.mark.parametrize("name", PLANTED)
async def test_verifier_finds_and_repairs_each_difference(pair: Following, name: str) -> None:
    await fill(pair)
    sql, mismatch = PLANTED[name]
    await pair.plant(sql)
    progress = await run(pair)
    assert listed(progress) == [mismatch]
    assert progress[-1].mismatch_count == 1
    assert progress[-1].repaired == 0
    checked = verifier(pair)
    assert await checked.check(messages(mismatch.id, "m-00003", "nobody")) == [mismatch]

    repairing = await run(pair, repair=True)
    assert listed(repairing) == [mismatch]
    assert (repairing[-1].mismatch_count, repairing[-1].repaired) == (1, 1)
    await pair.settle()
    assert await rows_of(pair, [mismatch.id])
    assert listed(await run(pair)) == []


async def test_verifier_reports_fields_in_order(pair: Following) -> None:
    await fill(pair)
    await pair.plant("UPDATE messages SET role = 'tool', revision = 0, content = 'x', tags = '[]'")
    found = listed(await run(pair))
    assert len(found) == 30
    assert {one.fields for one in found} == {("role", "content", "tags", "revision")}


async def test_verifier_finds_long_missing_ranges(pair: Following) -> None:
    await fill(pair, 3000)
    await pair.plant("DELETE FROM messages WHERE id >= 'm-00600' AND id < 'm-01900'")
    await pair.plant(
        "INSERT INTO messages SELECT 'm-02500-' || n, provider, role, content, tags, timestamp, "
        "metadata, session_id, created_at, revision, terms, search, sequence "
        "FROM messages, generate_series(1, 1200) AS n WHERE id = 'm-02500'"
    )
    progress = await run(pair, repair=True)
    assert len(listed(progress)) == MOST_LISTED
    assert progress[-1].mismatch_count == progress[-1].repaired == 2500
    assert progress[-1].compared == 4200
    await pair.settle()
    assert await pair.source.count() == await pair.target.count() == 3000
    assert listed(await run(pair)) == []


async def test_verifier_limits_pages_by_bytes(pair: Following) -> None:
    await save_all(pair.source, [draft(f"m-{n:02}", "é" * 90_000) for n in range(40)])
    await pair.settle()
    await pair.plant("DELETE FROM messages WHERE id IN ('m-03', 'm-20', 'm-39')")
    await pair.plant("UPDATE messages SET content = content || '!' WHERE id = 'm-38'")
    progress = await run(pair)
    assert progress[-1].compared == 40
    found = {one.id: one.kind for one in listed(progress)}
    assert found == {"m-03": "MISSING", "m-20": "MISSING", "m-39": "MISSING", "m-38": "DIFFERENT"}


async def test_verifier_compares_ids_by_bytes(pair: Following) -> None:
    await save_all(pair.source, [draft(f"{odd}{n:03}") for odd in ODD for n in range(100)])
    await pair.settle()
    progress = await run(pair)
    assert listed(progress) == []
    assert progress[-1].compared == 100 * len(ODD)
    gone = [f"{odd}{n:03}" for odd in ODD for n in (0, 99)]
    await pair.plant("DELETE FROM messages WHERE id = ANY($1)", gone)
    assert sorted(one.id for one in listed(await run(pair))) == sorted(gone)


async def test_verifier_ignores_rows_not_copied_yet(pair: Following) -> None:
    await fill(pair, 700)
    await pair.plant("DELETE FROM messages WHERE id >= 'm-00400'")

    def is_expected(row: Message) -> bool:
        return row.id < "m-00400"

    progress = await run(pair, is_expected=is_expected)
    assert listed(progress) == []
    assert progress[-1].compared == 400
    assert await verifier(pair, is_expected=is_expected).check(messages("m-00500")) == []
    await pair.plant("DELETE FROM messages WHERE id = 'm-00100'")
    found = listed(await run(pair, is_expected=is_expected))
    assert found == [Mismatch("m-00100", "MISSING", ())]


async def write_for_ever(pair: Following, number: int) -> None:
    """Save, replace and delete, all over the ids, and one hot row again and again."""
    for turn in itertools.count():
        key = f"m-{(turn * 37 + number * 101) % 1500:05}"
        await pair.source.save(draft(key, f"turn {turn} of {number}"))
        await pair.source.save(draft("m-00700-hot", f"turn {turn} of {number}"))
        if turn % 3 == 0:
            with contextlib.suppress(NotFoundError):
                await pair.source.delete(f"m-{(turn * 53 + number) % 1500:05}")
        if turn % 7 == 0:
            some = [draft(f"new-{number}-{turn}-{n}") for n in range(20)]
            await pair.source.bulk_save(some, OnConflict.REPLACE)


@contextlib.asynccontextmanager
async def running(*works: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run these for the duration of the context; none may end earlier."""
    tasks = [asyncio.ensure_future(work()) for work in works]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_verifier_is_exact_during_writes(pair: Following) -> None:
    await fill(pair, 1500)
    await save_all(pair.source, [draft(f"quiet-{n}") for n in range(3)])
    await pair.settle()
    async with running(*(lambda n=n: write_for_ever(pair, n) for n in range(4))):
        for _ in range(4):
            progress = await run(pair)
            assert listed(progress) == []
            assert progress[-1].compared >= 1000
        await pair.plant("DELETE FROM messages WHERE id = 'quiet-0'")
        await pair.plant("UPDATE messages SET content = 'x' WHERE id = 'quiet-2'")
        found = listed(await run(pair, repair=True))
        assert found == [
            Mismatch("quiet-0", "MISSING", ()),
            Mismatch("quiet-2", "DIFFERENT", ("content",)),
        ]
        await pair.settle()
        assert listed(await run(pair)) == []


async def test_verifier_ignores_transient_rows(pair: Following) -> None:
    await fill(pair, 100)

    async def flicker(number: int) -> None:
        while True:
            await pair.source.save(draft(f"m-00050-{number}"))
            await pair.source.delete(f"m-00050-{number}")

    async with running(*(lambda n=n: flicker(n) for n in range(8))):
        for _ in range(10):
            assert listed(await run(pair)) == []


async def test_verifier_waits_for_lagging_journal(pair: Following) -> None:
    await fill(pair)
    pair.pause()
    await pair.source.save(draft("m-00003", "newer"))
    await pair.source.delete("m-00004")
    await pair.source.save(draft("m-00005-new"))
    checking = asyncio.create_task(run(pair))
    await asyncio.sleep(0.05)
    assert not checking.done()
    pair.resume()
    assert listed(await checking) == []


async def test_verifier_fails_on_stalled_journal(pair: Following) -> None:
    await fill(pair)
    pair.pause()
    await pair.source.save(draft("m-00003", "newer"))
    checked = verifier(pair, patience=0.1)
    with pytest.raises(UnavailableError, match="without a result"):
        [progress async for progress in checked.run(True)]
    with pytest.raises(RuntimeError):
        _ = checked.result
    with pytest.raises(UnavailableError):
        await checked.check(messages("m-00003"))


async def test_verifier_fails_on_unavailable_target(pair: Following) -> None:
    await fill(pair)
    await pair.target.close()
    checked = verifier(pair, patience=0.1)
    with pytest.raises(UnavailableError):
        [progress async for progress in checked.run(False)]


async def test_verifier_waits_for_short_outage(pair: Following) -> None:
    await fill(pair)
    await pair.plant(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND application_name LIKE 'sagastore%'"
    )
    assert listed(await run(pair)) == []


async def test_cancelled_verification_leaves_no_state(pair: Following) -> None:
    await fill(pair, 2000)
    before = asyncio.all_tasks()
    checking = verifier(pair).run(False)
    await anext(checking)
    await checking.aclose()
    waiting = asyncio.create_task(run(pair))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await until(lambda: {task for task in asyncio.all_tasks() if not task.done()} <= before)


LEGACY = """
ALTER TABLE messages ADD COLUMN mood TEXT;
UPDATE messages SET mood = 'fine' WHERE id = 'good-1';
"""


async def test_verifier_compares_auxiliary_rows(place: Place) -> None:
    good = [{**PLAIN, "id": f"good-{n}"} for n in range(5)]
    bad = [{**PLAIN, "id": f"bad-{n}", "metadata": '{"x": NaN}'} for n in range(3)]
    legacy_db(place.path, [*good, *bad], more=LEGACY)
    async with following(*place) as pair:
        await pair.copy()
        await pair.carry()
        assert listed(await run(pair, compare_carried=True)) == []

        await pair.plant("UPDATE quarantine SET reason = reason || '!' WHERE number = 1")
        await pair.plant("UPDATE legacy_extra SET value = '{}'")
        assert listed(await run(pair)) == []
        wrong = [
            Mismatch("quarantine", "DIFFERENT", ("digest",)),
            Mismatch("legacy_extra", "DIFFERENT", ("digest",)),
        ]
        assert listed(await run(pair, compare_carried=True)) == wrong
        progress = await run(pair, compare_carried=True, repair=True, recarry=pair.carry)
        assert listed(progress) == wrong
        assert (progress[-1].mismatch_count, progress[-1].repaired) == (2, 2)
        assert listed(await run(pair, compare_carried=True)) == []


async def test_verifier_checks_many_ids(pair: Following) -> None:
    await fill(pair, 1200)
    await pair.plant("DELETE FROM messages WHERE id IN ('m-00000', 'm-01199')")
    ids = [f"m-{n:05}" for n in range(1200)]
    found = await verifier(pair).check(iter(messages(*ids, *ids)))
    assert sorted(one.id for one in found if one.kind == "MISSING") == ["m-00000", "m-01199"]
    assert await verifier(pair).check([]) == []


def test_verifier_compares_every_field() -> None:
    one = Message("i", "p", "r", "c", ("t",), 1, "{}", "s", 2, 3, 4)
    other = Message("I", "P", "R", "C", ("T",), 0, "[]", None, None, 0, 0)
    assert fields_that_differ(one, other) == Message._fields
    assert fields_that_differ(one, one._replace()) == ()


def test_divergence_needs_two_observations() -> None:
    suspicion = Divergence()
    assert suspicion.look("a", "b", "a") is None
    assert suspicion.look("a", "c", "a") is None, "another difference than before"
    assert suspicion.look("a", "c", "d") is None, "it changed meanwhile"
    assert suspicion.look("d", "c", "d") is None
    assert suspicion.look("d", "c", "d") is True


@pytest.mark.parametrize(("truth", "copy", "again"), [("a", "a", "a"), ("a", "b", "b")])
def test_divergence_equal_once_is_equal(truth: str, copy: str, again: str) -> None:
    suspicion = Divergence()
    assert suspicion.look("a", "x", "a") is None
    assert suspicion.look(truth, copy, again) is False


def test_divergence_pause_grows_to_limit() -> None:
    suspicion, pauses = Divergence(), []
    for _ in range(50):
        suspicion.look("a", "b", "c")
        pauses.append(suspicion.pause)
    assert pauses == sorted(pauses)
    assert 0 < pauses[0] < 0.1
    assert pauses[-1] == 2.0
