"""TLS to the database: `verify-full` prevents a man in the middle.

The PostgreSQL of the wheel is built without TLS; these tests need Debian's PostgreSQL.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.storage.errors import CannotOpenError
from tests.security.pki import Pki, chain, key
from tests.support.drafts import draft
from tests.support.ports import ReservedPort
from tests.support.postgres import PostgresProcess, postgres_process

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)

pytestmark = pytest.mark.skipif(PROGRAMS is None, reason="needs a PostgreSQL with TLS")


class Secured:
    """PostgreSQL that accepts only TLS connections over TCP."""

    def __init__(self, process: PostgresProcess, pki: Pki) -> None:
        """Restart ``process`` with a certificate for ``localhost``."""
        process.stop()
        folder = Path(process.dsn.partition("host=")[2])
        data = folder / "data"
        leaf = pki.issue("localhost")
        for name, content in (("server.crt", chain(leaf)), ("server.key", key(leaf))):
            file = data / name
            file.write_bytes(content)
            file.chmod(0o600)
            shutil.chown(file, data.stat().st_uid, data.stat().st_gid)
        (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n")
        self._reserved = ReservedPort()
        self._port = self._reserved.number
        options = f"-c listen_addresses=127.0.0.1 -c port={self._port} -k {folder} -c ssl=on"
        # Without a connection to try, pg_ctl waits for its file to say "ready".
        process._run("pg_ctl", "-w", "-t", "60", "-l", f"{folder}/log", "-o", options, "start")

    def close(self) -> None:
        """Give up its port."""
        self._reserved.close()

    def dsn(self, mode: str, ca: Path | None = None, host: str = "localhost") -> str:
        roots = f"&sslrootcert={ca}" if ca else ""
        return f"postgresql://postgres@{host}:{self._port}/postgres?sslmode={mode}{roots}"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def secured(pki: Pki) -> Iterator[Secured]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGASTORE_TEST_POSTGRES_BIN", str(PROGRAMS))
        with postgres_process() as process, closing(Secured(process, pki)) as secured:
            yield secured


async def stored(dsn: str) -> None:
    storage = PostgreSQLStorage(PostgreSQLOptions(dsn, pool_min=1, pool_max=2))
    await storage.open()
    try:
        await storage.save(draft("over-tls"))
        assert (await storage.get("over-tls")).id == "over-tls"
    finally:
        await storage.close()


async def test_server_certificate_is_verified(secured: Secured, pki: Pki) -> None:
    good = secured.dsn("verify-full", pki.ca)
    await stored(good)
    connection = await asyncpg.connect(good)
    query = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    assert tuple(await connection.fetchrow(query)) == (True, "TLSv1.3")
    await connection.close()
    foreign = Pki(pki.folder / "foreign").ca
    for dsn, told in (
        (secured.dsn("verify-full", pki.ca, host="127.0.0.1"), "certificate is not trusted (IP"),
        (secured.dsn("verify-full", foreign), "certificate is not trusted (unable to get local"),
        (secured.dsn("disable"), 'it refuses user "postgres"; check'),
    ):
        with pytest.raises(CannotOpenError) as caught:
            await stored(dsn)
        assert told in str(caught.value)
    # Encrypted, but to whom? Neither authority nor name is asked for.
    await stored(secured.dsn("require", host="127.0.0.1"))
