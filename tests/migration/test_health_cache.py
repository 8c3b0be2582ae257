"""How the stores do, when several ask at once."""

from __future__ import annotations

import asyncio

from sagastore_server.migration.current_state import CurrentState
from sagastore_server.migration.health_cache import HealthCache
from sagastore_server.storage.model import StoreHealth
from tests.support.memory import MemoryState, MemoryStorage


class SlowStorage(MemoryStorage):
    """Answers when the test allows it, and counts the requests."""

    asked = 0

    def __init__(self) -> None:
        super().__init__(MemoryState())
        self.was_asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def health(self) -> StoreHealth:
        self.asked += 1
        self.was_asked.set()
        await self.may_answer.wait()
        return await super().health()


async def test_health_cache_shares_concurrent_checks() -> None:
    source, target = SlowStorage(), SlowStorage()
    for store in (source, target):
        await store.open()
    watch = HealthCache(source, target, CurrentState())
    asking = [asyncio.create_task(watch.health()) for _ in range(5)]
    await source.was_asked.wait()
    await target.was_asked.wait()
    source.may_answer.set()
    target.may_answer.set()
    answers = await asyncio.gather(*asking)
    assert all(health.healthy for answer in answers for health in answer)
    assert (source.asked, target.asked) == (1, 1)
