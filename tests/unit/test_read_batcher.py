"""Reads that are gathered: what goes together, and what does not hold up what."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from sagastore_server.runtime import batch_delay
from sagastore_server.runtime.read_batcher import MOST, ReadBatcher


class Store:
    """Answers when it is let, with the key itself."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.answering = asyncio.Event()
        self.came = asyncio.Condition()

    async def fetch(self, keys: list[str]) -> Mapping[str, str]:
        async with self.came:
            self.asked.append(keys)
            self.came.notify_all()
        await self.answering.wait()
        return {key: key for key in keys if not key.startswith("no")}

    async def until_asked(self, times: int) -> None:
        async with self.came, asyncio.timeout(30):
            await self.came.wait_for(lambda: len(self.asked) >= times)


def begun(gathering: ReadBatcher[str], *keys: str) -> list[asyncio.Task[str | None]]:
    return [asyncio.create_task(gathering.get(key)) for key in keys]


async def test_an_idle_store_is_asked_at_once() -> None:
    store = Store()
    store.answering.set()
    gathering = ReadBatcher(store.fetch)
    assert await gathering.get("a") == "a"
    assert await gathering.get("none") is None
    assert store.asked == [["a"], ["none"]]


async def test_what_comes_together_goes_together_and_each_key_once() -> None:
    store = Store()
    store.answering.set()
    gathering = ReadBatcher(store.fetch)
    assert await asyncio.gather(*begun(gathering, "a", "b", "a", "none")) == ["a", "b", "a", None]
    assert store.asked == [["a", "b", "none"]]


async def test_no_more_than_so_many_keys_go_together() -> None:
    store = Store()
    store.answering.set()
    keys = [f"{number}" for number in range(3 * MOST + 1)]
    assert await asyncio.gather(*begun(ReadBatcher(store.fetch), *keys)) == keys
    assert [len(asked) for asked in store.asked] == [MOST, MOST, MOST, 1]


async def test_callers_who_come_back_one_by_one_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_delay, "PER_CALL", 0.1)
    monkeypatch.setattr(batch_delay, "LONGEST", 0.5)
    store = Store()
    store.answering.set()
    gathering = ReadBatcher(store.fetch)

    async def caller(number: int) -> None:
        await gathering.get(f"{number}")
        for _ in range(number):
            await asyncio.sleep(0)
        await gathering.get(f"{number}")

    await asyncio.gather(*(caller(number) for number in range(20)))
    assert [len(asked) for asked in store.asked] == [20, 20]


async def test_a_question_without_an_answer_holds_up_no_others() -> None:
    store = Store()
    gathering = ReadBatcher(store.fetch)
    waiting = []
    for number in range(3):
        waiting += begun(gathering, str(number))
        await store.until_asked(number + 1)  # All but the first after some patience.
    store.answering.set()
    assert await asyncio.gather(*waiting) == ["0", "1", "2"]


async def test_a_read_sees_what_was_there_when_it_began() -> None:
    # It must not be answered by a question that was asked before it came.
    values = {"a": "old"}
    read, answering = asyncio.Event(), asyncio.Event()

    async def fetch(keys: list[str]) -> Mapping[str, str]:
        found = {key: values[key] for key in keys}
        read.set()
        await answering.wait()
        return found

    gathering = ReadBatcher(fetch)
    (early,) = begun(gathering, "a")
    await read.wait()
    values["a"] = "new"
    (late,) = begun(gathering, "a")
    answering.set()
    assert (await early, await late) == ("old", "new")


async def test_who_gives_up_leaves_the_others_alone() -> None:
    store = Store()
    gathering = ReadBatcher(store.fetch)
    first, second = begun(gathering, "a", "a")
    await store.until_asked(1)
    first.cancel()
    store.answering.set()
    assert await second == "a"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_failure_is_told_to_all_and_is_over_then() -> None:
    times = 0

    async def fetch(keys: list[str]) -> Mapping[str, str]:
        nonlocal times
        times += 1
        if times == 1:
            raise ValueError("away")
        return dict.fromkeys(keys, "back")

    gathering = ReadBatcher(fetch)
    outcomes = await asyncio.gather(*begun(gathering, "a", "b"), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["away", "away"]
    assert await gathering.get("a") == "back"
