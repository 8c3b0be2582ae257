"""Rolling upgrade of server processes under load: no call fails, and no message is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sagastore_server.postgresql.schema import SCHEMA_VERSION
from tests.support.fleet import PRESENT, fleet, load, with_step
from tests.support.postgres import fresh_schema

NEXT = SCHEMA_VERSION + 1


async def test_servers_are_replaced_one_by_one_and_back(tmp_path: Path) -> None:
    """First by a version that the present one is compatible with, then by one that excludes it."""
    column = "ALTER TABLE messages ADD COLUMN later_{} BIGINT NOT NULL DEFAULT 0;"
    newer = with_step(PRESENT, tmp_path / "newer", NEXT, column.format(1), SCHEMA_VERSION)
    newest = with_step(newer, tmp_path / "newest", NEXT + 1, column.format(2), NEXT + 1)
    async with fresh_schema() as dsn:
        with fleet(dsn, tmp_path, 2) as servers:
            one, two = servers
            for server in servers:
                await asyncio.to_thread(server.replace, PRESENT)
            async with load([server.address for server in servers]) as calls:
                await calls.proceed()
                await asyncio.to_thread(two.replace, newer)
                await calls.proceed()
                # The schema stays, and the present version serves beside and after the newer one.
                await asyncio.to_thread(two.replace, PRESENT)
                await calls.proceed()
                await asyncio.to_thread(two.replace, newest)
                reason = (await asyncio.to_thread(one.wait_for_event, "not ready"))["reason"]
                assert f"needs servers that support schema version {NEXT + 1} or newer" in reason
                await calls.proceed()
                await asyncio.to_thread(one.replace, newest)
                await calls.proceed()
