"""Each cause of a failed connection has its line, at a start, a change of phase and a reconnect."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
import structlog

from sagastore_server.migration.migrating_service import MigratingService, Options
from sagastore_server.postgresql.diagnosis import ProblemLog
from sagastore_server.postgresql.errors import translated
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import CannotOpenError, PreconditionError, StorageError
from sagastore_server.storage.phase import Phase
from tests.postgresql.targets import fetched, opened_plain, plain
from tests.support.migrating_service import change
from tests.support.postgres import PostgresProcess, execute, postgres_process
from tests.support.server_process import ServerProcess

SECRET = "vEryPrivate7"


class Reachable(NamedTuple):
    """PostgreSQL on a TCP port, without TLS."""

    process: PostgresProcess
    port: int

    def dsn(self, user: str = "postgres", database: str = "postgres", query: str = "") -> str:
        return f"postgresql://{user}:{SECRET}@127.0.0.1:{self.port}/{database}?{query}"

    @property
    def admin_dsn(self) -> str:
        """Connection string of an administrator, on the socket."""
        folder = self.process.dsn.partition("host=")[2]
        return f"postgresql://postgres@/postgres?host={folder}&port={self.port}"

    async def permit(self, *lines: str) -> None:
        """Replace pg_hba.conf, and wait until it is in force."""
        rules = "\n".join(("local all all trust", *lines))
        (self.process.data / "pg_hba.conf").write_text(rules)
        loaded = "SELECT pg_conf_load_time()"
        before = await fetched(self.admin_dsn, loaded)
        await self.admin("SELECT pg_reload_conf()")
        while await fetched(self.admin_dsn, loaded) == before:
            pass

    async def admin(self, sql: str) -> None:
        await execute(self.admin_dsn, sql)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Reachable]:
    with postgres_process() as process:
        process.stop()
        folder = Path(process.dsn.partition("host=")[2])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port: int = free.getsockname()[1]
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -k {folder}"
        process._run("pg_ctl", "-w", "-t", "60", "-l", f"{folder}/log", "-o", options, "start")
        yield Reachable(process, port)


@pytest.fixture
async def roles(postgres: Reachable) -> AsyncIterator[Reachable]:
    """Permit some roles with a password, and none for others."""
    await postgres.admin(
        "CREATE ROLE locked LOGIN PASSWORD 'other'; CREATE ROLE one LOGIN CONNECTION LIMIT 0;"
        "CREATE ROLE poor LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    )
    await postgres.permit(
        "host all locked 127.0.0.1/32 scram-sha-256", "host all nobody 127.0.0.1/32 reject",
        "host all all 127.0.0.1/32 trust",
    )  # fmt: skip
    yield postgres
    await postgres.admin("DROP ROLE locked; DROP ROLE one; DROP ROLE poor")


async def refusal(dsn: str, **options: object) -> str:
    storage = plain(dsn, **options)
    with pytest.raises(CannotOpenError) as caught:
        await storage.open()
    line = str(caught.value)
    assert SECRET not in line
    assert len(line.splitlines()) == 1
    return line


LINES = [
    (("locked", "postgres", ""), 'password authentication failed for user "locked"', "28P01"),
    (("nobody", "postgres", ""), 'it refuses user "nobody"', "28000"),
    (("absent", "postgres", ""), 'it refuses user "absent"', "28000"),
    (("postgres", "absent", ""), "/absent: the database does not exist; create it", "3D000"),
    (("one", "postgres", ""), "it has too many connections", "53300"),
    (("poor", "postgres", ""), 'the role "poor" lacks a privilege', "42501"),
    (("postgres", "template0", ""), "the database accepts no connections", "55000"),
    (("postgres", "postgres", "nosuch=1"), "it rejects the setting nosuch; correct", "42704"),
    (("postgres", "postgres", "work_mem=x"), "it rejects the setting work_mem", "22023"),
    (("postgres", "postgres", "options=-cnosuch%3D1"), "the setting nosuch", "42704"),
    (
        ("postgres", "postgres", "options=-csearch_path%3Dnope"),
        "schema nope does not exist, or the role lacks the privilege USAGE on it; create it",
        "",
    ),
    (
        ("postgres", "postgres", "sslmode=require"),
        "TLS is not offered by the server, but sslmode is require; enable ssl",
        "",
    ),
    (
        ("postgres", "postgres", "sslmode=verify-full&sslrootcert=/no/file"),
        "sslrootcert: cannot read /no/file: No such file or directory",
        "",
    ),
    (
        ("postgres", "postgres", "sslmode=require&sslcert=/no/cert"),
        "sslcert: cannot read /no/cert",
        "",
    ),
]


@pytest.mark.parametrize(("place", "line", "state"), LINES)
async def test_line_at_a_start(
    roles: Reachable, place: tuple[str, str, str], line: str, state: str
) -> None:
    told = await refusal(roles.dsn(*place))
    assert line in told
    assert (f"(SQLSTATE {state})" in told) if state else ("SQLSTATE" not in told)


async def test_honoured_parameters_connect(roles: Reachable) -> None:
    """None of them is sent to PostgreSQL, which would refuse it."""
    await roles.admin("CREATE SCHEMA fine")
    query = "channel_binding=prefer&connect_timeout=5&gssencmode=prefer&keepalives_idle=9"
    query += "&target_session_attrs=read-write&options=-csearch_path%3Dfine&application_name=mine"
    async with opened_plain(roles.dsn(query=query)) as store, store._pool.connection() as used:
        names = ("search_path", "application_name")
        assert [await used.fetchval(f"SHOW {name}") for name in names] == ['"fine"', "mine"]
        sock = used._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 9
    await roles.admin("DROP SCHEMA fine CASCADE")


async def test_unusable_addresses_have_their_lines(tmp_path: Path) -> None:
    assert "127.0.0.1:1/d: connection refused" in await refusal("postgresql://u@127.0.0.1:1/d")
    assert "the host name cannot be resolved" in await refusal("postgresql://u@x.invalid/d")
    assert "there is no socket in that folder" in await refusal(f"host={tmp_path} user=u dbname=d")
    peer = await asyncio.start_server(_http, "127.0.0.1", 0)
    async with peer:
        port = peer.sockets[0].getsockname()[1]
        line = await refusal(f"postgresql://u@127.0.0.1:{port}/d")
        assert "the answer is not that of PostgreSQL; check host and port" in line
        line = await refusal(f"postgresql://u@127.0.0.1:{port}/d?sslmode=disable")
        assert "the connection broke; check that host and port are those of PostgreSQL" in line


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


async def test_silent_host_does_not_keep_others_from_being_tried(roles: Reachable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # It never answers.
        port = silent.getsockname()[1]
        line = await refusal(f"postgresql://u@127.0.0.1:{port}/d?connect_timeout=1")
        assert "no answer within 1 s; check host, port and firewall" in line
        hosts = f"127.0.0.1:{port},127.0.0.1:{roles.port}"
        dsn = f"postgresql://postgres@{hosts}/postgres?connect_timeout=1"
        async with opened_plain(dsn, acquire_timeout=60.0) as store:
            assert (await store.health()).healthy


async def test_line_at_a_change_of_phase(roles: Reachable, tmp_path: Path) -> None:
    for place, line, _ in LINES[:1] + LINES[-3:-2]:
        target = PostgreSQLTarget(PostgreSQLOptions(roles.dsn(*place)))
        service = MigratingService(SQLiteSource(tmp_path / f"{place[0]}.db"), target, Options(0.0))
        try:
            await service.backend.open()
            with pytest.raises(PreconditionError) as caught:
                await change(service.control, Phase.DUAL_WRITE)
            assert line in str(caught.value)
        finally:
            await service.backend.close()


def test_cause_is_logged_when_the_connection_is_lost(postgres: Reachable, tmp_path: Path) -> None:
    """The password is changed while the server runs, and its connections are ended."""
    asyncio.run(postgres.admin(f"CREATE ROLE rotated LOGIN SUPERUSER PASSWORD '{SECRET}'"))
    asyncio.run(postgres.permit("host all all 127.0.0.1/32 scram-sha-256"))
    server = ServerProcess(tmp_path / "unused.db", postgres=postgres.dsn("rotated"))
    try:
        server.start()
        # Two transactions: the new password must be in force when the server reconnects.
        asyncio.run(postgres.admin("ALTER ROLE rotated PASSWORD 'new'"))
        theirs = "FROM pg_stat_activity WHERE usename = 'rotated'"
        asyncio.run(postgres.admin(f"SELECT pg_terminate_backend(pid) {theirs}"))
        reason = server.wait_for_event("not ready")
        assert reason["reason"].startswith("the PostgreSQL store rejects the credentials")
        causes = [one for one in server.events if one.get("sqlstate") == "28P01"]
        assert causes[0]["cause"] == 'password authentication failed for user "rotated"'
        assert causes[0]["event"] == "PostgreSQL error"
        asyncio.run(postgres.admin(f"ALTER ROLE rotated PASSWORD '{SECRET}'"))
        server.wait_for_event("ready again")
        assert SECRET not in "\n".join(server.stderr)
    finally:
        server.close()


async def test_log_names_objects_and_no_values(roles: Reachable) -> None:
    lines: list[dict[str, object]] = []
    clock = iter([0.0, 1.0, 20.0])

    def keep(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
        lines.append(dict(event))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[keep], cache_logger_on_first_use=False)
    try:
        log = ProblemLog(lambda: next(clock))
        connection = await asyncpg.connect(roles.dsn())
        await connection.execute(
            "CREATE TEMP TABLE t (a int CONSTRAINT small CHECK (a < 1), b jsonb)"
        )
        for sql in (f"INSERT INTO t VALUES (2, '\"{SECRET}\"')",) * 3:
            with pytest.raises(asyncpg.CheckViolationError) as caught:
                await connection.execute(sql)
            log.report(caught.value, None)
        with pytest.raises(asyncpg.PostgresError) as bad:
            await connection.execute(f"SELECT '{{{SECRET}'::jsonb")
        await connection.close()
    finally:
        structlog.configure(**before)
    # The second is within the interval.
    assert [line["more"] for line in lines] == [0, 1]
    assert lines[0]["sqlstate"] == "23514"
    assert (lines[0]["table"], lines[0]["constraint"]) == ("t", "small")
    for error in (caught.value, bad.value):
        assert SECRET not in json.dumps(lines)
        assert isinstance(translated(error), StorageError)
        assert SECRET not in str(error)
        assert "SQLSTATE" in str(error)


async def test_errors_of_the_driver_quote_no_values(roles: Reachable) -> None:
    connection = await asyncpg.connect(roles.dsn())
    with pytest.raises(asyncpg.DataError) as caught:
        await connection.fetchval("SELECT $1::int", SECRET)
    await connection.close()
    assert SECRET in str(caught.value)
    translated(caught.value)
    text = logging.Formatter().formatException((type(caught.value), caught.value, None))
    assert SECRET not in text
