"""Large stores: created once, by an import and a migration whose memory usage is measured.

The folder contains, for each number of rows and each source of messages:

- ``alone.db``: a file in SQLITE_ONLY;
- ``pair.db``: the same in BACKFILL, copied and verified, ready for READ_POSTGRES;
- ``made.json``: the measurements during their creation.

PostgreSQL contains the databases ``<name>_pair``, which belongs to ``pair.db``, and
``<name>_alone``, in POSTGRES_ONLY. Benchmarks work on copies.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from sagastore import Phase
from tests.support.server_process import ServerProcess, clean_environment
from tools.benchmarks.harness import Bench
from tools.benchmarks.memory_usage import Memory, memory_of
from tools.benchmarks.messages import dialogues, import_line, items
from tools.benchmarks.servers import ROOT, change_phases, copy_store, ours, ready_for_next

NAME = "big"
"""Prefix that separates the ids of these messages from others."""


class Stores(NamedTuple):
    """Large stores with equal messages."""

    rows: int
    alone: Path
    pair: Path
    alone_database: str
    pair_database: str
    memory: dict[str, tuple[float, float]]
    """MiB by activity and process: the peak, and the growth in the second half."""
    seconds: dict[str, float]
    """Seconds by activity."""


def stores(bench: Bench, *, recreate: bool = False) -> Stores:
    """Return the stores of this run's size; create them if they are missing or if ``recreate``."""
    rows = bench.sizes.scale
    name = f"big_{rows}_{crc32(json.dumps(dialogues()).encode()):08x}"
    folder = bench.folder / "stores" / name
    made = folder / "made.json"
    pair_database, alone_database = f"{name}_pair", f"{name}_alone"
    kept = made.exists() and all(map(bench.postgres.has, (pair_database, alone_database)))
    if recreate or not kept:
        shutil.rmtree(folder, ignore_errors=True)
        for database in (pair_database, alone_database):
            bench.postgres.drop(database)
        folder.mkdir(parents=True)
        making = _Making(bench, folder, rows)
        making.run(pair_database, alone_database)
        made.write_text(json.dumps([making.memory, making.seconds]), encoding="utf-8")
    else:
        bench.say(f"using the large stores in {folder}")
    memory, seconds = json.loads(made.read_text(encoding="utf-8"))
    return Stores(
        rows,
        folder / "alone.db",
        folder / "pair.db",
        alone_database,
        pair_database,
        {what: (peak, growth) for what, (peak, growth) in memory.items()},
        seconds,
    )


class _Making:
    def __init__(self, bench: Bench, folder: Path, rows: int) -> None:
        self._bench = bench
        self._folder = folder
        self._rows = rows
        self.memory: dict[str, tuple[float, float]] = {}
        self.seconds: dict[str, float] = {}

    def run(self, pair_database: str, alone_database: str) -> None:
        """Import into SQLite, migrate, export, and finish the migration."""
        postgres = self._bench.postgres
        file = self._folder / "alone.db"
        self._import(file)
        pair = copy_store(file, self._folder / "pair.db")
        database = postgres.create()
        with ours(pair, postgres.dsn_of(database)) as server:
            self._backfill(server)
        postgres.rename(database, pair_database)
        with self._bench.file() as copied:
            copy_store(pair, copied)
            database = postgres.create(pair_database)
            with ours(copied, postgres.dsn_of(database)) as server:
                change_phases(server.address, Phase.POSTGRES_ONLY)
                self._export(server, "exported from PostgreSQL")
            postgres.rename(database, alone_database)

    def _import(self, file: Path) -> None:
        with self._bench.file(".jsonl") as lines:
            with lines.open("w", encoding="utf-8") as out:
                out.writelines(map(import_line, items(NAME, 0, self._rows)))
            with ours(file) as server:
                self._client(server, "imported", "import", str(lines))
                self._export(server, "exported from SQLite")

    def _backfill(self, server: ServerProcess) -> None:
        change_phases(server.address, Phase.DUAL_WRITE)
        with self._timed("backfilled"), memory_of(server.pid) as memory:
            change_phases(server.address, Phase.BACKFILL)
            ready_for_next(server.address)
        self._note("backfilled: server", memory)

    def _export(self, server: ServerProcess, what: str) -> None:
        with self._bench.file(".export") as target:
            self._client(server, what, "export", str(target))

    def _client(self, server: ServerProcess, what: str, *command: str) -> None:
        """Run the client's command and measure the memory of both processes."""
        program = Path(sys.executable).with_name("sagastore")
        with self._timed(what), memory_of(server.pid) as of_server:
            client = subprocess.Popen(
                [program, *command, "--target", server.address],
                cwd=ROOT,
                env=clean_environment(self._folder),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            with memory_of(client.pid) as of_client:
                status = client.wait()
        if status:
            raise RuntimeError(f"sagastore {command[0]} exited with status {status}")
        self._note(f"{what}: server", of_server)
        self._note(f"{what}: client", of_client)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - began
        rate = self._rows / self.seconds[what]
        self._bench.say(f"{what}: {self._rows:,} rows, {rate:,.0f} per second")

    def _note(self, what: str, memory: Memory) -> None:
        self.memory[what] = (memory.peak, memory.growth)


@contextmanager
def copied(bench: Bench, file: Path) -> Iterator[Path]:
    """Yield a copy of a file, and remove it afterwards."""
    with bench.file() as target:
        yield copy_store(file, target)
