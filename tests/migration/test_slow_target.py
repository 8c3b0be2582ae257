"""A slow PostgreSQL in READ_POSTGRES: attempts to return must not stall the writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sagastore_server.migration.migrating_service import Options
from sagastore_server.migration.write_fence import WriteFence
from sagastore_server.storage.model import Store
from sagastore_server.storage.phase import Phase
from tests.migration.conftest import Place
from tests.migration.held import Held, HeldTarget, held
from tests.support.drafts import draft
from tests.support.migrating_service import eventually_current, walk_to
from tests.support.waiting import until

PATIENCE = 0.3
SLOW = 0.4
"""Seconds of a transaction that applies the journal, more than the patience."""


@pytest.fixture
def fences(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect the seconds for which the write fence was closed."""
    closed, seconds = WriteFence.closed, []

    @asynccontextmanager
    async def measured(self: WriteFence, within: float) -> AsyncIterator[None]:
        started = time.monotonic()
        try:
            async with closed(self, within):
                yield
        finally:
            seconds.append(time.monotonic() - started)

    monkeypatch.setattr(WriteFence, "closed", measured)
    return seconds


class SlowApply:
    """Makes every transaction that applies the journal slow, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = SLOW
        self.applied = 0
        apply = HeldTarget.apply

        async def slow(target: HeldTarget, *args: Any, **options: Any) -> None:
            await asyncio.sleep(self.seconds)
            await apply(target, *args, **options)
            self.applied += 1

        monkeypatch.setattr(HeldTarget, "apply", slow)


async def _fallen_back(one: Held) -> None:
    await one.backend.save(draft("m", "first"))
    assert not one.service._fallback.current


async def test_slow_target_does_not_stall_writes(
    place: Place, monkeypatch: pytest.MonkeyPatch, fences: list[float]
) -> None:
    async with held(place, Options(shadow_share=0.0, patience=PATIENCE)) as one:
        await walk_to(one.control, Phase.READ_POSTGRES)
        await eventually_current(one.control)
        slow = SlowApply(monkeypatch)
        await _fallen_back(one)
        fences.clear()
        while slow.applied < 5:
            await one.backend.save(draft("m", f"text {slow.applied}"))
        assert not fences
        slow.seconds = 0.0
        await eventually_current(one.control)
        saved = await one.backend.save(draft("m", "last"))
        assert saved.durable_on == (Store.SQLITE, Store.POSTGRESQL)


async def test_attempts_to_return_back_off(
    place: Place, monkeypatch: pytest.MonkeyPatch, fences: list[float]
) -> None:
    """Attempts that fail are repeated after pauses that double."""
    async with held(place, Options(shadow_share=0.0, patience=PATIENCE)) as one:
        await walk_to(one.control, Phase.READ_POSTGRES)
        await eventually_current(one.control)
        fallback = one.service._fallback
        fallback.fall_back("the test says so")
        pauses: list[float] = []

        async def refuse(*_: object) -> bool:
            pauses.append(fallback._return_pause)
            return False

        monkeypatch.setattr(fallback, "catch_up", refuse)
        fallback._return_at, fallback._return_pause = 0.0, 0.1
        await until(lambda: len(pauses) >= 4)
        assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]
