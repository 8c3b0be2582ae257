"""Shadow reads on a real file and a real database."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from sagastore_server.migration.shadow import MOST_KEPT, ShadowReader
from sagastore_server.search.parser import parse_query
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import NotFoundError
from sagastore_server.storage.migration import ShadowStatus
from sagastore_server.storage.query import Criteria, Scan
from tests.migration.conftest import Place
from tests.migration.following import Following, following
from tests.support.drafts import NOW, draft, save_all
from tests.support.waiting import until

SCAN = Scan(False, 50)
Read = Callable[[StorageBackend], Awaitable[object]]

READS: dict[str, Read] = {
    "Get": lambda store: store.get("m-003"),
    "Get of nothing": lambda store: store.get("nobody"),
    "BatchGet": lambda store: store.batch_get(["m-009", "nobody", "m-003"]),
    "List": lambda store: store.list_session("s-1", SCAN),
    "Search": lambda store: store.search(Criteria(parse_query("content 3")), SCAN),
}


@pytest.fixture
async def pair(place: Place) -> AsyncIterator[Following]:
    async with following(*place) as pair:
        some = [draft(f"m-{n:03}", f"secret content {n}", timestamp=NOW + n) for n in range(100)]
        await save_all(pair.source, some)
        await pair.settle()
        yield pair


@contextlib.asynccontextmanager
async def started(pair: Following, **options: Any) -> AsyncIterator[ShadowReader]:
    shadow = ShadowReader(pair.source, pair.target, pair.reach, **({"share": 1.0} | options))
    shadow.start()
    try:
        yield shadow
    finally:
        await shadow.close()


async def read(pair: Following, shadow: ShadowReader, name: str) -> None:
    """Read from the source, as the router does, and have it compared."""
    assert shadow.wanted()
    answer: object
    try:
        answer = await READS[name](pair.source)
    except NotFoundError as exc:
        answer = exc
    shadow.compare(name, READS[name], answer)


async def done(shadow: ShadowReader, count: int) -> ShadowStatus:
    await until(lambda: shadow.status.compared + shadow.status.skipped >= count)
    return shadow.status


async def test_shadow_equal_answers_are_counted(pair: Following) -> None:
    async with started(pair) as shadow:
        for name in READS:
            await read(pair, shadow, name)
        assert await done(shadow, len(READS)) == ShadowStatus(compared=len(READS))


@pytest.mark.parametrize("name", [name for name in READS if name != "Get of nothing"])
@pytest.mark.parametrize(
    "change", ["DELETE FROM messages", "UPDATE messages SET content = content || ' and more'"]
)
async def test_shadow_difference_is_reported_without_text(
    pair: Following, name: str, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    stored = (await pair.source.get("m-003")).revision
    await pair.plant(f"{change} WHERE id = 'm-003'")
    with caplog.at_level(logging.WARNING):
        async with started(pair) as shadow:
            await read(pair, shadow, name)
            status = await done(shadow, 1)
    assert (status.compared, status.skipped, status.different) == (1, 0, 1)
    (difference,) = status.differences
    assert difference.read == name
    assert difference.at > NOW
    assert f"m-003@{stored}" in difference.sqlite
    if change.startswith("UPDATE"):
        assert f"m-003@{stored} (fields differ)" in difference.postgresql
    told = repr(status) + caplog.text
    assert name in caplog.text
    assert "secret" not in told


async def test_shadow_extra_message_is_different(pair: Following) -> None:
    await pair.source.delete("m-003")
    await pair.settle()
    await pair.plant(
        "INSERT INTO messages SELECT 'm-003', provider, role, content, tags, timestamp, metadata, "
        "session_id, created_at, 17, terms, search, 17 FROM messages WHERE id = 'm-004'"
    )
    async with started(pair) as shadow:
        await read(pair, shadow, "Get")
        (difference,) = (await done(shadow, 1)).differences
    assert difference.sqlite == "not found"
    assert difference.postgresql == "1 row; only here: m-003@17"


async def test_shadow_order_difference_is_reported(pair: Following) -> None:
    await pair.plant("UPDATE messages SET timestamp = '2000-01-01' WHERE id = 'm-049'")
    async with started(pair) as shadow:
        await read(pair, shadow, "List")
        (difference,) = (await done(shadow, 1)).differences
    revision = (await pair.source.get("m-049")).revision
    assert f"m-049@{revision} (fields differ)" in difference.postgresql
    assert difference.postgresql.startswith("50 rows and more; only here: ")


async def test_shadow_keeps_latest_differences_and_counts_all(pair: Following) -> None:
    await pair.plant("DELETE FROM messages WHERE id = 'm-003'")
    async with started(pair) as shadow:
        for number in range(MOST_KEPT + 3):
            await read(pair, shadow, "Get")
            await done(shadow, number + 1)
        assert shadow.status.different == MOST_KEPT + 3
        assert len(shadow.status.differences) == MOST_KEPT
        shadow.reset()
        assert shadow.status == ShadowStatus()


async def test_shadow_waits_for_lagging_target(pair: Following) -> None:
    async with started(pair) as shadow:
        pair.pause()
        await pair.source.save(draft("m-003", "newer"))
        await pair.source.delete("m-004")
        for name in READS:
            await read(pair, shadow, name)
        await asyncio.sleep(0.05)
        assert shadow.status == ShadowStatus()
        pair.resume()
        assert await done(shadow, len(READS)) == ShadowStatus(compared=len(READS))


async def test_shadow_message_changed_after_answer_is_equal(pair: Following) -> None:
    async with started(pair) as shadow:
        pair.pause()
        await read(pair, shadow, "Get")
        await pair.source.save(draft("m-003", "newer"))
        pair.resume()
        await pair.settle()
        assert await done(shadow, 1) == ShadowStatus(compared=1)


async def test_writers_cause_no_false_alarm(pair: Following) -> None:
    async def write(number: int) -> None:
        for turn in itertools.count():
            key = f"m-{(turn * 7 + number) % 12:03}"
            await pair.source.save(draft(key, f"content 3 {turn}", timestamp=NOW + turn % 5))
            if turn % 5 == 0:
                with contextlib.suppress(NotFoundError):
                    await pair.source.delete(f"m-{(turn * 3 + number) % 12:03}")

    writers = [asyncio.create_task(write(number)) for number in range(3)]
    async with started(pair) as shadow:
        for turn in range(4):
            for name in READS:
                await read(pair, shadow, name)
            await done(shadow, (turn + 1) * len(READS))
        assert shadow.status.different == 0
        assert shadow.status.compared > 0
    assert not any(writer.done() for writer in writers)
    for writer in writers:
        writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)


async def test_shadow_skips_reads_beyond_limit(pair: Following) -> None:
    async with started(pair, max_waiting=3) as shadow:
        pair.pause()
        await pair.source.save(draft("m-003", "newer"))
        for _ in range(5):
            await read(pair, shadow, "Get")
        assert shadow.status == ShadowStatus(skipped=2)
        pair.resume()
        assert await done(shadow, 5) == ShadowStatus(compared=3, skipped=2)


async def test_shadow_failing_target_is_no_difference(pair: Following) -> None:
    await pair.target.close()
    async with started(pair) as shadow:
        for name in READS:
            await read(pair, shadow, name)
        assert await done(shadow, len(READS)) == ShadowStatus(skipped=len(READS))


async def test_shadow_failing_read_is_logged(
    pair: Following, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(store: StorageBackend) -> object:
        raise RuntimeError("a defect")

    with caplog.at_level(logging.ERROR):
        async with started(pair) as shadow:
            shadow.compare("Broken", broken, await pair.source.get("m-003"))
            assert await done(shadow, 1) == ShadowStatus(skipped=1)
    assert "a shadow read failed: Broken" in caplog.text


async def test_shadow_compares_share_while_started(pair: Following) -> None:
    async with started(pair, share=0.3) as shadow:
        count = sum(shadow.wanted() for _ in range(10_000))
        assert 2_500 < count < 3_500
    async with started(pair, share=0.0) as shadow:
        assert not any(shadow.wanted() for _ in range(1000))
    async with started(pair) as shadow:
        shadow.stop()
        assert not shadow.wanted()
        answer = await pair.source.get("m-003")
        shadow.compare("Get", READS["Get"], answer)
        shadow.start()
        shadow.compare("Get", READS["Get"], answer)
        assert await done(shadow, 1) == ShadowStatus(compared=1)


async def test_shadow_reset_discards_pending_comparisons(pair: Following) -> None:
    await pair.plant("DELETE FROM messages WHERE id = 'm-003'")
    async with started(pair) as shadow:
        pair.pause()
        await pair.source.save(draft("m-004", "newer"))
        await read(pair, shadow, "Get")
        shadow.reset()
        pair.resume()
        await until(lambda: not shadow._tasks)
        assert shadow.status == ShadowStatus()


async def test_shadow_close_cancels_comparisons(pair: Following) -> None:
    before = asyncio.all_tasks()
    async with started(pair) as shadow:
        pair.pause()
        await pair.source.save(draft("m-003", "newer"))
        for _ in range(10):
            await read(pair, shadow, "Get")
    assert {task for task in asyncio.all_tasks() if "shadow" in task.get_name()} <= before
