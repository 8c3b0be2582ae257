"""A cancelled caller leaves the same migration state on disk and in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagastore_server.storage.phase import Phase
from tests.migration.conftest import Place
from tests.migration.held import Hold, held
from tests.support.migrating_service import walk_to


async def test_cancelled_backfill_control_is_complete(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancellation comes when the state is on disk and not in memory yet."""
    async with held(place) as one:
        await walk_to(one.control, Phase.BACKFILL)
        current, written, set_state = one.service._current_state, Hold(), one.source.set_state

        async def held_set_state(*args: Any) -> int:
            revision = await set_state(*args)
            await written.passed()
            return revision

        monkeypatch.setattr(one.source, "set_state", held_set_state)
        written.close()
        control = asyncio.ensure_future(
            one.control.control_backfill(paused=True, batch_size=None, max_rows_per_second=None)
        )
        await written.reached.wait()
        control.cancel()
        await asyncio.wait({control}, timeout=0.01)
        assert current.changing.locked()
        written.open()
        with pytest.raises(asyncio.CancelledError):
            await control
        assert current.state.paused
        assert await one.source.state() == current.state
