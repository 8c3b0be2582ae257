"""A PostgreSQL to measure: one of our own, with its data in the benchmark's folder.

Unlike that of the tests it syncs (``fsync`` and ``synchronous_commit`` are on). Its settings
are those of a small server, and the same for every side of every comparison.
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
"""Characters of a folder whose socket can still be named."""

_numbers = itertools.count()


class BenchPostgres(PostgresProcess):
    """A PostgreSQL that is kept between two runs, with the large databases in it."""

    def __init__(self, folder: Path) -> None:
        """Prepare to keep data in ``folder``.

        Raises:
            ValueError: The path is too long for a socket.

        """
        if len(str(folder)) > _LONGEST:
            raise ValueError(
                f"{folder}: too long for a socket's path; choose another folder with FOLDER="
            )
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> BenchPostgres:
        """Start it, whatever was left of a run before."""
        # The first start makes the data, without syncing; then again as it is measured.
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
        """Stop it, with everything on disk."""
        self._run("pg_ctl", "-w", "-m", "fast", "stop", check=False)

    @property
    def folder(self) -> Path:
        """Where its socket is."""
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
        """Tell whether there is such a database."""
        known = self.value("SELECT string_agg(datname, ' ') FROM pg_database")
        return database in known.split()

    def rename(self, database: str, name: str) -> None:
        """Rename a database that nobody uses."""
        self.value(f"ALTER DATABASE {database} RENAME TO {name}")

    def drop(self, database: str) -> None:
        """Remove a database, whoever uses it."""
        self.value(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def drop_leftovers(self) -> None:
        """Remove what a run that was killed has left."""
        known = self.value("SELECT string_agg(datname, ' ') FROM pg_database")
        for database in known.split():
            if database.startswith("run_"):
                self.drop(database)

    def create(self, template: str = "template1") -> str:
        """Make a database, empty or a copy, and return its name."""
        name = f"run_{os.getpid()}_{next(_numbers)}"
        self.value(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        self.value("CHECKPOINT")
        os.sync()
        return name

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """Make a database for as long as the context lasts; yield its connection string."""
        name = self.create(template)
        try:
            yield self.dsn_of(name)
        finally:
            self.drop(name)
