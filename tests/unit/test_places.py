"""Places of unary calls: counted until their answer was sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagastore_server.interfaces.errors import OverloadedError
from sagastore_server.rpc.memory_budget import SMALL
from sagastore_server.rpc.places import CallPlace, PlaceLimits, Places

LIMITS = PlaceLimits(
    max_calls=20,
    max_streams=4,
    request_memory=100 * SMALL,
    answer_memory=100 * SMALL,
    owner_share=0.5,
    unread_seconds=60,
)
SHARE = 10


class Calls:
    """Calls of `Places`, each served by a task that ends when its answer was sent."""

    def __init__(self) -> None:
        self.places = Places(LIMITS)
        self._sent = asyncio.Event()
        self._group = asyncio.TaskGroup()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[Calls]:
        calls = cls()
        async with calls._group:
            yield calls
            calls._sent.set()

    async def begin(self, owner: str, handle: Callable[[CallPlace], None]) -> bool:
        """Begin a call; return False if there is no place for it."""
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            place = self.places.call(owner)
            taken.set_result(place is not None)
            if place is not None:
                handle(place)
                await self._sent.wait()

        self._group.create_task(serve())
        return await taken

    async def send_all(self) -> None:
        """Let every answer be sent."""
        self._sent.set()
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - tasks that end on their own
            await asyncio.sleep(0)


def run(test: Callable[[Calls], Awaitable[None]]) -> None:
    async def running() -> None:
        async with Calls.running() as calls:
            await test(calls)

    asyncio.run(running())


def answered(place: CallPlace) -> None:
    place.hold_request(100)
    place.send(300, may_refuse=True)


async def test_unsent_answer_holds_its_place() -> None:
    async with Calls.running() as calls:
        assert await calls.begin("a", answered)
        assert calls.places.settle() == 1
        assert (calls.places.requests.used, calls.places.answers.used) == (0, 300)


async def test_owner_has_a_share_of_unsent_answers() -> None:
    async with Calls.running() as calls:
        for _ in range(SHARE):
            assert await calls.begin("a", answered)
        assert not await calls.begin("a", answered)
        assert await calls.begin("b", answered)


def test_sent_answers_leave_room() -> None:
    async def test(calls: Calls) -> None:
        for owner in "ab":
            for _ in range(SHARE):
                assert await calls.begin(owner, answered)
        assert not await calls.begin("c", answered)
        await calls.send_all()
        assert await calls.begin("a", answered)
        assert calls.places.calls == 1

    run(test)


def test_memory_of_sent_answers_is_free() -> None:
    async def test(calls: Calls) -> None:
        share = 50 * SMALL
        assert await calls.begin("a", lambda place: place.send(share, may_refuse=True))
        with pytest.raises(OverloadedError):
            calls.places.call("a")
        await calls.send_all()
        assert await calls.begin("a", lambda place: place.send(share, may_refuse=True))

    run(test)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(0, 3 * SMALL),
            st.integers(0, 3 * SMALL),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_nothing_is_counted_after_the_end(
    events: list[tuple[str, int, int, bool]],
) -> None:
    async def test(calls: Calls) -> None:
        for owner, request, answer, is_sent in events:

            def handle(
                place: CallPlace, request: int = request, answer: int = answer, ok: bool = is_sent
            ) -> None:
                place.hold_request(request)
                if ok:
                    place.send(answer, may_refuse=False)
                else:
                    place.release()

            await calls.begin(owner, handle)
        await calls.send_all()
        assert calls.places.settle() == 0
        assert (calls.places.requests.used, calls.places.answers.used) == (0, 0)

    run(test)
