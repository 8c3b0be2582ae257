"""PostgreSQL for the benchmarks, with its data in the benchmark folder.

Unlike that of the tests, it syncs to disk (``fsync`` and ``synchronous_commit`` are on). Its
settings suit a small server and are the same for every side of every comparison.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from tests.support.postgres import PostgresProcess

SETTINGS = (
    "fsync=on",
    "synchronous_commit=on",
    "shared_buffers=512MB",
    "max_wal_size=4GB",
    "maintenance_work_mem=256MB",
    "max_connections=200",
)
_LONGEST = 90
"""Maximum length of a folder's path, because of the limit of socket paths."""

_numbers = itertools.count()


class BenchPostgres(PostgresProcess):
    """PostgreSQL that is kept between runs, with the large databases."""

    def __init__(self, folder: Path) -> None:
        """Keep data in ``folder``.

        Raises:
            ValueError: The path is too long for a socket.
        """
        if len(str(folder)) > _LONGEST:
            raise ValueError(
                f"{folder}: path is too long for a Unix socket; choose a shorter one with FOLDER="
            )
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> BenchPostgres:
        """Start the server, after an unclean shutdown as well."""
        # The first start creates the data without syncing; the second one uses the measured
        # settings.
        if not (self._data / "PG_VERSION").exists():
            super().start()
            self.stop()
        elif self._run("pg_ctl", "status", check=False) == 0:
            self.stop()
        options = " ".join(f"-c {setting}" for setting in SETTINGS)
        options = f'-c listen_addresses="" -k {self._folder} {options}'
        self._run("pg_ctl", "-w", "-t", "60", "-l", f"{self._folder}/log", "-o", options, "start")
        return self

    def stop(self) -> None:
        """Stop the server with all data on disk."""
        self._run("pg_ctl", "-w", "-m", "fast", "stop", check=False)

    @property
    def folder(self) -> Path:
        """Folder of its socket."""
        return self._folder

    def version(self) -> str:
        """Return its version."""
        return str(self.value("SHOW server_version"))

    def value(self, sql: str, database: str = "postgres") -> Any:
        """Return the one value of a statement."""

        async def asking() -> Any:
            connection = await asyncpg.connect(self.dsn_of(database))
            try:
                return await connection.fetchval(sql)
            finally:
                await connection.close()

        return asyncio.run(asking())

    def dsn_of(self, database: str) -> str:
        """Return the connection string of a database."""
        return urlsplit(self.dsn)._replace(path=f"/{database}").geturl()

    def has(self, database: str) -> bool:
        """Return whether a database exists."""
        known = self.value("SELECT string_agg(datname, ' ') FROM pg_database")
        return database in known.split()

    def rename(self, database: str, name: str) -> None:
        """Rename a database without connections."""
        self.value(f"ALTER DATABASE {database} RENAME TO {name}")

    def drop(self, database: str) -> None:
        """Drop a database and close its connections."""
        self.value(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def drop_leftovers(self) -> None:
        """Drop the databases of a run that was killed."""
        known = self.value("SELECT string_agg(datname, ' ') FROM pg_database")
        for database in known.split():
            if database.startswith("run_"):
                self.drop(database)

    def create(self, template: str = "template1") -> str:
        """Create a database, empty or as a copy, and return its name."""
        name = f"run_{os.getpid()}_{next(_numbers)}"
        self.value(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        self.value("CHECKPOINT")
        os.sync()
        return name

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """Create a database for the duration of the context; yield its connection string."""
        name = self.create(template)
        try:
            yield self.dsn_of(name)
        finally:
            self.drop(name)
