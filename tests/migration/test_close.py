"""Closing a migrating service runs every step, whatever fails."""

from __future__ import annotations

import pytest

from tests.migration.conftest import Place
from tests.support.migrating_service import live


async def test_close_runs_every_step_and_raises_the_first_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = live(*place)
    await service.backend.open()
    closed: list[str] = []

    async def fail(text: str) -> None:
        raise RuntimeError(text)

    source, target = service._source.close, service._target.close

    async def close_source() -> None:
        await source()
        closed.append("source")
        await fail("second")

    async def close_target() -> None:
        await target()
        closed.append("target")

    monkeypatch.setattr(service._backfill, "stop", lambda: fail("first"))
    monkeypatch.setattr(service._source, "close", close_source)
    monkeypatch.setattr(service._target, "close", close_target)
    with pytest.raises(RuntimeError, match="first"):
        await service.backend.close()
    assert closed == ["source", "target"]
