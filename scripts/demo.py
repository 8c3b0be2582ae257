"""Demonstration of a complete migration under load, with a kill -9 (``make demo``).

    python -m scripts.demo [--legacy FILE] [--rows N] [--calls N] [--keep]

A server runs on a legacy database and an embedded PostgreSQL (or a new schema in the database that
``SAGASTORE_DEMO_POSTGRES`` names). Clients write and read throughout, and every answer is checked.
Exit status 1 if a call fails, an answer is wrong, or data is lost. All files are in one temporary
folder, which is removed at the end unless ``--keep`` is given.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from sagastore import AsyncClient, Migration, Phase, SagaStoreError
from scripts.demo_page import Page, Step
from tests.support.checker import Checker
from tests.support.final_state import FinalState
from tests.support.legacy_sample import count_rows, legacy_sample
from tests.support.migration_control import change, until_ready
from tests.support.postgres import PostgresProcess, execute, with_parameter
from tests.support.server_process import ServerProcess
from tests.support.traffic import FOUND_WORDS, RETRYING, WORDS, Settings, Traffic
from tests.support.traffic_clients import traffic

POSTGRES = "SAGASTORE_DEMO_POSTGRES"
COPY_SECONDS = 8
"""Duration of the throttled part of the copy, extrapolated to all rows, in seconds."""
REST = 0.05
"""Seconds between two calls of a client, so that the service is busy but not saturated."""

_WAYS = (
    (Phase.READ_POSTGRES, "PostgreSQL answers"),
    (Phase.BACKFILL, "one step back: SQLite answers"),
    (Phase.READ_POSTGRES, "forward again"),
    (Phase.POSTGRES_ONLY, "the file becomes an archive"),
)


class Options(NamedTuple):
    """Options of the demonstration."""

    legacy: Path | None
    rows: int
    calls: int
    keep: bool


class Demo:
    """Migration from the legacy file to the archive."""

    def __init__(
        self, options: Options, folder: Path, dsn: str, page: Page, stack: contextlib.ExitStack
    ) -> None:
        """Work in ``folder`` with the PostgreSQL at ``dsn``; ``stack`` cleans up."""
        self._options = options
        self._dsn = dsn
        self._files = 0
        self._page = page
        self._file = folder / "memory.db"
        self._server = ServerProcess(self._file, env={"SAGASTORE_POSTGRES": dsn})
        # Closed once more at the very end, because an interrupt may arrive during a start.
        stack.callback(self._server.close)
        self._checker = Checker()
        self._checker.track((*WORDS, *FOUND_WORDS))

    async def run(self) -> bool:
        """Run the demonstration; return whether no data was lost."""
        self._prepare()
        try:
            self._page.doing("importing the legacy file")
            began = time.monotonic()
            self._server.start()
            self._page.say(
                f"imported and served after {time.monotonic() - began:.1f} s, "
                f"at {self._server.address}"
            )
            async with AsyncClient(self._server.address, timeout=120, retry=RETRYING) as operator:
                return await self._migrate(operator)
        finally:
            self._server.close()

    def _prepare(self) -> None:
        self._page.doing("preparing the legacy file")
        if self._options.legacy is None:
            legacy_sample(self._file, self._options.rows, long_every=400)
        else:
            _copy(self._options.legacy, self._file)
        messages, files = count_rows(self._file)
        self._files = files
        self._page.say(f"legacy file: {messages:,} messages, {files:,} files")

    async def _migrate(self, operator: AsyncClient) -> bool:
        self._page.doing("reading all messages")
        async for message in operator.export():
            self._checker.known(message)
        quarantined_rows = (await operator.migration.get()).quarantined
        self._page.say(
            f"{len(self._checker.ids):,} messages served, {quarantined_rows:,} rows in quarantine"
        )
        settings = Settings(
            seed=1,
            writers=4,
            readers=2,
            retry=RETRYING,
            timeout=60,
            everywhere=False,
            rest=REST,
            exports=0.1,
        )
        async with traffic(self._checker, self._server.address, settings) as running:
            changed = await running.during(self._walk(operator, running))
        return await self._settle(running, operator, changed)

    # ------------------------------------------------------------------ the phases

    async def _walk(self, operator: AsyncClient, running: Traffic) -> dict[str, int]:
        """Go through all phases; return the checker's position before the last step."""
        self._page.begin_steps()
        await self._traffic(running, "sqlite-only", "SQLite alone")
        await self._step(operator, running, Phase.DUAL_WRITE, "PostgreSQL follows")
        await self._step(operator, running, Phase.BACKFILL, "older rows are copied", calls=0)
        await self._kill(operator, running)
        await self._wait(operator, running)
        for phase, what in _WAYS:
            moment = self._checker.moment()
            await self._step(operator, running, phase, what)
        return moment

    async def _step(
        self,
        operator: AsyncClient,
        running: Traffic,
        phase: Phase,
        what: str,
        calls: int | None = None,
    ) -> None:
        self._page.doing(f"changing to {phase.label}")
        await until_ready(operator)
        before, began = running.calls.total(), time.monotonic()
        await change(operator, phase)
        ended = time.monotonic()
        if phase is Phase.BACKFILL and calls == 0:
            await self._throttle(operator)
        # A write held by the change may be answered shortly after it.
        await running.more(self._options.calls if calls is None else calls)
        self._page.step(
            Step(
                f"to {phase.label}",
                what,
                began,
                ended - began,
                running.longest_write(began, ended),
                running.calls.total() - before,
            )
        )

    async def _traffic(self, running: Traffic, name: str, what: str) -> None:
        self._page.doing(f"reading and writing in {name}")
        began = time.monotonic()
        await running.more(self._options.calls)
        ended = time.monotonic()
        slowest = running.longest_write(began, ended)
        self._page.step(Step(name, what, began, ended - began, slowest, running.calls.total()))

    async def _throttle(self, operator: AsyncClient) -> None:
        total = len(self._checker.ids)
        await operator.migration.control_backfill(
            batch_size=max(10, total // 100), max_rows_per_second=max(10, total // COPY_SECONDS)
        )

    async def _kill(self, operator: AsyncClient, running: Traffic) -> None:
        """Kill the server during the copy and restart it."""
        self._page.doing("copying; the server will be killed")
        copied = await _copied(operator, share=0.15)
        before, began = running.calls.total(), time.monotonic()
        self._server.kill9()
        self._page.doing("killed; restarting")
        await asyncio.to_thread(self._server.restart)
        ended = time.monotonic()
        await running.more(self._options.calls)
        backfill = copied.backfill
        self._page.step(
            Step(
                "kill -9",
                f"at {backfill.copied:,} of {backfill.total:,} rows; restarted",
                began,
                ended - began,
                running.longest_write(began, ended),
                running.calls.total() - before,
            )
        )

    async def _wait(self, operator: AsyncClient, running: Traffic) -> None:
        self._page.doing("copying the rest, building indexes, comparing every row")
        before, began = running.calls.total(), time.monotonic()
        await operator.migration.control_backfill(batch_size=1000, max_rows_per_second=0)
        done = await until_ready(operator)
        ended = time.monotonic()
        compared = done.last_verification.compared if done.last_verification else 0
        self._page.step(
            Step(
                "backfill",
                f"rest copied, indexes built, {compared:,} rows compared",
                began,
                ended - began,
                running.longest_write(began, ended),
                running.calls.total() - before,
            )
        )

    # ------------------------------------------------------------------ the end

    async def _settle(
        self, running: Traffic, operator: AsyncClient, moment: dict[str, int]
    ) -> bool:
        """Compare PostgreSQL with the acknowledged writes, and the archive with both."""
        self._page.doing("comparing PostgreSQL with the acknowledged writes and with the archive")
        quarantined_rows, aside_files = 0, 0
        async for row in operator.migration.quarantine(page_size=500):
            quarantined_rows += 1
            aside_files += row.source_key.startswith("files/")
        final = FinalState(self._file.with_name("memory.db.archive"))
        await final.read(self._dsn)
        final.compare(self._checker.changed_since(moment))
        final.compare_counts(quarantined_rows, self._files - aside_files)
        settled, stored = self._checker.settled(), final.values()
        right = sum(stored.get(id) == settled.get(id) for id in self._checker.ids)
        unknown = stored.keys() - settled.keys() - set(self._checker.ids)
        whole = right == len(self._checker.ids) and not unknown and not running.failed
        self._page.ledger(
            {
                "Calls made": f"{running.calls.total():,}",
                "Failed": f"{running.failed:,}",
                "Answers checked": f"{self._checker.answers:,} messages, all correct",
                "Acknowledged writes": f"{running.acknowledged:,}",
                "Ids, written or imported": f"{len(self._checker.ids):,}",
                "Found in PostgreSQL as acknowledged": f"{right:,}"
                + (" (all)" if whole else " (NOT ALL)"),
                "Messages in PostgreSQL": f"{len(stored):,}",
                "In quarantine": f"{quarantined_rows:,}",
                "Archive": f"{len(final.messages):,} messages, receipt and SHA-256 verified",
            }
        )
        return whole


async def _copied(operator: AsyncClient, share: float) -> Migration:
    """Wait until a share of the rows has been copied."""
    async for migration in operator.migration.watch():
        if migration.backfill.copied > share * migration.backfill.total:
            return migration
    raise AssertionError("the migration status stream ended")


def _copy(legacy: Path, to: Path) -> None:
    """Copy a database that may be in use, including its WAL."""
    if not legacy.is_file():
        raise SystemExit(
            f"error: file {legacy} does not exist; set LEGACY to the path of a memory.db"
        )
    uri = f"{legacy.resolve().as_uri()}?mode=ro"
    with (
        contextlib.closing(sqlite3.connect(uri, uri=True)) as source,
        contextlib.closing(sqlite3.connect(to)) as copy,
    ):
        source.backup(copy)


@contextlib.asynccontextmanager
async def postgresql(folder: Path, page: Page, *, keep: bool) -> AsyncIterator[str]:
    """Run a PostgreSQL in ``folder``, or create a schema in the configured one."""
    given = os.environ.get(POSTGRES)
    if given:
        schema = f"sagastore_demo_{os.getpid()}"
        await execute(given, f"CREATE SCHEMA {schema}")
        page.say(f"PostgreSQL: the one of {POSTGRES}, schema {schema}")
        try:
            yield with_parameter(given, "search_path", schema)
        finally:
            if not keep:
                await execute(given, f"DROP SCHEMA {schema} CASCADE")
        return
    page.doing("starting a PostgreSQL")
    process = PostgresProcess(folder / "pg")
    try:
        process.start()
        page.say(f"PostgreSQL: an embedded one, {process.dsn}")
        yield process.dsn
    finally:
        process.stop()


async def demonstrate(
    options: Options, folder: Path, page: Page, stack: contextlib.ExitStack
) -> bool:
    """Run the demonstration in ``folder``; return whether no data was lost."""
    async with postgresql(folder, page, keep=options.keep) as dsn:
        return await Demo(options, folder, dsn, page, stack).run()


def main() -> int:
    """Run the demonstration, clean up, and return the exit status."""
    parser = argparse.ArgumentParser(prog="make demo", description="A migration under load.")
    parser.add_argument(
        "--legacy", type=Path, help="a memory.db; the demonstration works on a copy"
    )
    parser.add_argument(
        "--rows", type=int, default=20_000, help="rows of the generated file (without --legacy)"
    )
    parser.add_argument("--calls", type=int, default=500, help="calls between two steps")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    given = parser.parse_args()
    options = Options(given.legacy, given.rows, given.calls, given.keep)
    # SIGTERM cleans up like SIGINT.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    began, whole, page = time.monotonic(), False, Page()
    folder = Path(tempfile.mkdtemp(prefix="sagastore-demo-"))
    try:
        with contextlib.ExitStack() as stack:
            page.title(f"A migration under load, in {folder}")
            whole = asyncio.run(demonstrate(options, folder, page, stack))
    except (AssertionError, SagaStoreError, OSError, RuntimeError) as exc:
        page.failed(str(exc) or repr(exc))
    except KeyboardInterrupt:
        page.failed("interrupted")
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    kept = f"kept: {folder}" if options.keep else f"removed: {folder}"
    page.verdict(whole, f"{time.monotonic() - began:.0f} s total; {kept}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
