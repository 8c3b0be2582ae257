"""The address of the holder of a migration in PostgreSQL, as forwarders read it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sagastore_server.interfaces.forwarding import HolderRecord
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.holder import HolderReader
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import Lease
from tests.support.postgres import execute, postgres_process
from tests.support.waiting import until_async

ONE, OTHER = Lease("host-1:1:1", "session-1"), Lease("host-2:2:2", "session-2")
SOURCE = "store-1"


def target(dsn: str, address: str) -> PostgreSQLTarget:
    """Return a target whose holder is at ``address``."""
    options = PostgreSQLOptions(dsn, pool_min=1, pool_max=4)
    return PostgreSQLTarget(options, advertised=lambda: address)


@pytest.fixture
async def reader(dsn: str) -> AsyncIterator[HolderReader]:
    reader = HolderReader(PostgreSQLOptions(dsn))
    yield reader
    await reader.close()


async def test_reader_follows_the_address_of_the_holder(dsn: str, reader: HolderReader) -> None:
    assert await reader.read() is None
    one = target(dsn, "10.0.0.1:50051")
    await one.open()
    await one.claim(ONE, SOURCE, Phase.SQLITE_ONLY, 1)
    assert await reader.read() == HolderRecord(Phase.SQLITE_ONLY, SOURCE, "10.0.0.1:50051")
    await one.set_phase(ONE, Phase.DUAL_WRITE, 2, 0)
    await one.release(ONE)
    # A released lease, as of a server that went back to sqlite-only.
    assert await reader.read() == HolderRecord(Phase.DUAL_WRITE, SOURCE, "10.0.0.1:50051")
    other = target(dsn, "[::1]:7")
    await other.open()
    await other.claim(OTHER, SOURCE, Phase.DUAL_WRITE, 2)
    assert await reader.read() == HolderRecord(Phase.DUAL_WRITE, SOURCE, "[::1]:7")
    await other.finish(OTHER, 3, 0)
    found = await reader.read()
    assert found is not None
    assert (found.phase, found.store_id) == (Phase.POSTGRES_ONLY, SOURCE)
    await one.close()
    await other.close()
    alone = PostgreSQLStorage(PostgreSQLOptions(dsn, pool_min=1, pool_max=2))
    await alone.open()
    assert alone.migrated_from == SOURCE
    await alone.close()


async def test_address_of_a_former_holder_is_not_used(dsn: str, reader: HolderReader) -> None:
    """A server of an older version takes the lease, and leaves the address as it is."""
    one = target(dsn, "10.0.0.1:50051")
    await one.open()
    await one.claim(ONE, SOURCE, Phase.DUAL_WRITE, 1)
    await execute(dsn, f"UPDATE migration SET holder = '{OTHER.holder}', session = 'older'")
    assert await reader.read() == HolderRecord(Phase.DUAL_WRITE, SOURCE, "")
    await execute(dsn, "DELETE FROM store_state WHERE name = 'holder_address'")
    assert await reader.read() == HolderRecord(Phase.DUAL_WRITE, SOURCE, "")
    await one.close()


async def test_reader_survives_an_outage_of_postgresql() -> None:
    with postgres_process() as process:
        reader = HolderReader(PostgreSQLOptions(process.dsn, acquire_timeout=1))
        one = target(process.dsn, "127.0.0.1:1")
        await one.open()
        await one.claim(ONE, SOURCE, Phase.DUAL_WRITE, 1)
        await one.close()
        process.stop()
        with pytest.raises(StorageError):
            await reader.read()
        process.start()
        known = HolderRecord(Phase.DUAL_WRITE, SOURCE, "127.0.0.1:1")
        assert await reader.read() == known
        process.stop()
        with pytest.raises(StorageError):
            await reader.read()
        process.start()

        async def is_known() -> bool:
            return await reader.read() == known

        await until_async(is_known)
        await reader.close()
