"""The whole migration under concurrent clients, with a check of every answer.

A real server on a legacy file and a real PostgreSQL; nobody retries, so that a call which
fails because of a change of phase, or because PostgreSQL is away, fails the test.
``SAGASTORE_TEST_PROFILE=thorough`` tries more seeds, on more rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from pathlib import Path
from typing import NamedTuple

import pytest

from sagastore import AsyncClient, Phase
from tests.support.checker import Checker, Value
from tests.support.final_state import FinalState
from tests.support.legacy_sample import Sample, legacy_sample
from tests.support.migration_control import change, go_to, until_ready
from tests.support.postgres import PostgresProcess, fresh_schema, postgres_process
from tests.support.server_process import ServerProcess
from tests.support.strategies import QUICK
from tests.support.traffic import FOUND_WORDS, RETRYING, WORDS, Settings, Traffic
from tests.support.traffic_clients import traffic

pytestmark = pytest.mark.timeout(300 if QUICK else 1200)

SEEDS = range(2) if QUICK else range(10)
ROWS = 1500 if QUICK else 10_000
FEW_ROWS = 600 if QUICK else 5_000
CALLS = 100 if QUICK else 1000
"""Calls between two steps of the operator."""

WALK = (
    Phase.DUAL_WRITE,
    Phase.BACKFILL,
    Phase.READ_POSTGRES,
    Phase.BACKFILL,
    Phase.DUAL_WRITE,
    Phase.SQLITE_ONLY,
    Phase.DUAL_WRITE,
    Phase.BACKFILL,
    Phase.READ_POSTGRES,
)
DUAL = (Phase.DUAL_WRITE, Phase.BACKFILL, Phase.READ_POSTGRES)


class Service(NamedTuple):
    """A server on a legacy file, and what its clients know."""

    process: ServerProcess
    sample: Sample
    checker: Checker
    operator: AsyncClient

    def traffic(self, settings: Settings) -> AbstractAsyncContextManager[Traffic]:
        """Let clients loose on it."""
        return traffic(self.checker, self.process.address, settings)


@asynccontextmanager
async def serving(folder: Path, dsn: str, rows: int) -> AsyncIterator[Service]:
    """Run a server on a legacy file of so many rows."""
    sample = legacy_sample(folder / "memory.db", rows)
    process = ServerProcess(folder / "memory.db", env={"SAGASTORE_POSTGRES": dsn})
    checker = Checker()
    checker.track((*WORDS, *FOUND_WORDS))
    try:
        process.start()
        async with AsyncClient(process.address, timeout=60) as operator:
            async for message in operator.export():
                checker.known(message)
            assert len(checker.ids) == sample.served
            yield Service(process, sample, checker, operator)
        assert process.terminate() == 0
    finally:
        process.close()


async def check_all(service: Service) -> None:
    """Compare everything that is stored with everything that was acknowledged."""
    stored = {message.id: Value.of(message) async for message in service.operator.export()}
    assert stored == service.checker.settled()


@pytest.mark.parametrize("seed", SEEDS)
async def test_forward_and_back_and_forward_again(tmp_path: Path, seed: int) -> None:
    async with fresh_schema() as dsn, serving(tmp_path, dsn, ROWS) as service:
        operator = service.operator
        async with service.traffic(Settings(seed)) as running:
            await running.more(CALLS)
            for phase in WALK:
                await running.during(go_to(operator, phase))
                await running.more(CALLS)
            if seed % 2:
                # Nothing is written any more: the archive and PostgreSQL must be equal.
                await running.hold()
            before = service.checker.moment()
            await running.during(change(operator, Phase.POSTGRES_ONLY))
            running.resume()
            await running.more(CALLS)
        await check_all(service)
        changed = service.checker.changed_since(before)
        assert running.failed == 0
        assert running.calls["Export"]
        final = FinalState(tmp_path / "memory.db.archive")
        await final.read(dsn)
        final.compare(changed)
        # One of the files cannot be represented.
        final.compare_counts(service.sample.quarantined + 1, service.sample.files - 1)


# ---------------------------------------------------------------- PostgreSQL goes away


@contextmanager
def stopped(postgres: PostgresProcess) -> Iterator[None]:
    """Stop PostgreSQL in the orderly way of an administrator in a hurry, and start it again."""
    postgres.stop()
    yield
    postgres.start()


@contextmanager
def killed(postgres: PostgresProcess) -> Iterator[None]:
    postgres.kill9()
    yield
    postgres.start()


@contextmanager
def hung(postgres: PostgresProcess) -> Iterator[None]:
    """Freeze every process of it: connections stay open, and nothing is answered."""
    pids = [postgres.pid, *children_of(postgres.pid)]
    for pid in pids:
        signal_if_there(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            signal_if_there(pid, signal.SIGCONT)


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in text.split()]


def signal_if_there(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


Outage = Callable[[PostgresProcess], AbstractContextManager[None]]


@pytest.fixture
def postgres() -> Iterator[PostgresProcess]:
    """Run a PostgreSQL for this test, which may freeze or stop it."""
    with postgres_process() as process:
        yield process


@pytest.mark.parametrize("outage", [stopped, killed, hung])
async def test_load_with_postgresql_outage_in_each_phase(
    tmp_path: Path, postgres: PostgresProcess, outage: Outage
) -> None:
    async with serving(tmp_path, postgres.dsn, FEW_ROWS) as service:
        operator = service.operator
        async with service.traffic(Settings(7, everywhere=False)) as running:
            for phase in DUAL:
                await running.during(until_ready(operator))
                await change(operator, phase)
                if phase is Phase.BACKFILL:
                    # In the middle of the copy.
                    await operator.migration.control_backfill(
                        batch_size=20, max_rows_per_second=100
                    )
                await running.more(CALLS)
                with outage(postgres):
                    await running.more(CALLS)
                await running.more(CALLS)
                if phase is Phase.BACKFILL:
                    await operator.migration.control_backfill(
                        batch_size=1000, max_rows_per_second=0
                    )
            await running.during(until_ready(operator))
            await running.hold()
            await running.during(change(operator, Phase.POSTGRES_ONLY))
        assert running.failed == 0
        await check_all(service)
        final = FinalState(tmp_path / "memory.db.archive")
        await final.read(postgres.dsn)
        final.compare()


@pytest.mark.parametrize("outage", [stopped, killed, hung])
async def test_load_with_outage_of_only_store(
    tmp_path: Path, postgres: PostgresProcess, outage: Outage
) -> None:
    """Calls fail then, and the retries of the client library bridge it."""
    async with serving(tmp_path, postgres.dsn, FEW_ROWS // 3) as service:
        await go_to(service.operator, Phase.POSTGRES_ONLY)
        settings = Settings(8, retry=RETRYING, timeout=60, everywhere=False)
        async with service.traffic(settings) as running:
            await running.more(CALLS)
            with outage(postgres):
                await running.during(asyncio.sleep(0.5))
            await running.more(CALLS)
        assert running.failed == 0
        await check_all(service)
