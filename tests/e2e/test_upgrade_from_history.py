"""Rolling upgrade from the previous schema version, with the wheels of that version.

They are built from the history of this repository. A checkout without it, such as a shallow one,
skips the test and says so. `tests/e2e/test_rolling_upgrade.py` needs no history.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sagastore_server.postgresql.schema import COMPATIBLE_FROM, SCHEMA_VERSION
from tests.postgresql.targets import fetched
from tests.support.earlier_version import NoHistoryError, build, previous_commit
from tests.support.fleet import PRESENT, Code, FleetServer, fleet, load
from tests.support.postgres import fresh_schema

_VERSION = "SELECT max(version) FROM sagastore_schema"


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Code:
    try:
        commit = previous_commit()
    except NoHistoryError as exc:
        pytest.skip(f"the wheels of the previous schema version cannot be built: {exc}")
    return build(commit, tmp_path_factory.mktemp("previous"))


@pytest.mark.history
async def test_servers_of_the_previous_schema_are_replaced_one_by_one(
    tmp_path: Path, previous: Code
) -> None:
    async with fresh_schema() as dsn:
        with fleet(dsn, tmp_path, 3) as servers:
            for server in servers:
                await asyncio.to_thread(server.replace, previous)
            assert await fetched(dsn, _VERSION) == [(SCHEMA_VERSION - 1,)]
            async with load([server.address for server in servers]) as calls:
                await calls.proceed()
                for server in servers:
                    await asyncio.to_thread(server.replace, PRESENT)
                    await calls.proceed()
                assert await fetched(dsn, _VERSION) == [(SCHEMA_VERSION,)]
                await asyncio.to_thread(_go_back, servers[0], previous)
                await calls.proceed()


def _go_back(server: FleetServer, previous: Code) -> None:
    """Start the previous version again, which the schema permits or excludes."""
    if COMPATIBLE_FROM[SCHEMA_VERSION] < SCHEMA_VERSION:
        server.replace(previous)
        return
    server.terminate()
    server.use(previous)
    server.spawn()
    assert server.wait() == 1
    assert "run a newer server" in server.stderr[-1]
