"""Fleet: server processes of several versions on one database, under load by the client library."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import sagastore
import sagastore_server
from sagastore import AsyncClient, Message
from sagastore.errors import SagaStoreError
from tests.support.ports import ReservedPort
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

Code = Sequence[Path]
"""Folders with the packages of one version."""

PRESENT: Code = (
    Path(sagastore_server.__file__).parents[1],
    Path(sagastore.__file__).parents[1],
)
"""The code that is tested."""

CALLERS = 4
TIMEOUT = 120.0
"""Seconds of a call, on a machine that is slow and busy. The retry policy is the default one."""


def with_step(code: Code, folder: Path, number: int, sql: str, compatible_from: int) -> Code:
    """Copy ``code`` to ``folder`` and add a schema step of PostgreSQL."""
    package = folder / "sagastore_server"
    shutil.copytree(code[0] / "sagastore_server", package)
    (package / "postgresql" / "schema" / f"{number:04}_later.sql").write_text(sql, encoding="utf-8")
    module = package / "postgresql" / "schema.py"
    text, count = re.subn(
        r"(COMPATIBLE_FROM = \{[^}]*)\}",
        rf"\1, {number}: {compatible_from}}}",
        module.read_text(encoding="utf-8"),
    )
    assert count == 1
    module.write_text(text, encoding="utf-8")
    return (folder, *code[1:])


class FleetServer(ServerProcess):
    """A server process whose version can be replaced. It keeps its port."""

    def use(self, code: Code) -> None:
        """Run ``code`` from the next start on."""
        self._env["PYTHONPATH"] = os.pathsep.join(map(str, code))

    def replace(self, code: Code) -> None:
        """Stop the server gracefully if it runs, and start ``code`` in its place."""
        if self.alive:
            self.terminate()
        self.use(code)
        self.start()


@contextmanager
def fleet(dsn: str, folder: Path, count: int) -> Iterator[list[FleetServer]]:
    """Make servers on the database ``dsn``, which are not started yet but have their ports."""
    with ExitStack() as stack:
        servers = []
        for number in range(count):
            home = folder / f"server-{number}"
            home.mkdir()
            port = ReservedPort()
            stack.callback(port.close)
            server = FleetServer(home / "unused.db", postgres=dsn)
            server.address = port.address
            stack.callback(server.close)
            servers.append(server)
        yield servers


class Load:
    """Calls of all kinds, and what became of them."""

    def __init__(self, client: AsyncClient) -> None:
        """Call through ``client``."""
        self._client = client
        self.acknowledged: list[str] = []
        """Ids of saved messages."""
        self.failures: list[SagaStoreError] = []
        self.calls = 0
        self.longest = 0.0
        """Seconds of the longest call, retries included."""
        self.ending = False

    async def call_until_the_end(self, caller: int) -> None:
        """Save, append and read."""
        client, session = self._client, f"session-{caller}"
        for number in itertools.count():
            if self.ending:
                return
            id, other = f"{caller}-{number}", f"{caller}-{number}-appended"
            appended = Message("openai", "user", "more", id=other)
            await self._count(client.save(Message("openai", "user", f"message {id}", id=id)))
            await self._count(client.get(id))
            await self._count(client.sessions.append(session, [appended]))
            await self._count(client.sessions.get(session))
            await self._count(client.search(f"message {id}").first())
            self.acknowledged += [id, other]

    async def _count(self, call: Awaitable[object]) -> None:
        began = time.monotonic()
        try:
            await call
        except SagaStoreError as exc:
            self.failures.append(exc)
        self.longest = max(self.longest, time.monotonic() - began)
        self.calls += 1

    async def proceed(self, calls: int = 40) -> None:
        """Wait until so many further calls have ended, and require that none has failed."""
        enough = self.calls + calls
        await until(lambda: self.calls >= enough or self.failures)
        assert self.failures == []


@asynccontextmanager
async def load(addresses: Sequence[str], within: float = TIMEOUT) -> AsyncIterator[Load]:
    """Call servers during the context; at its end, every acknowledged message must be there.

    ``within`` is the timeout of a call, in seconds.
    """
    async with AsyncClient(addresses, timeout=within) as client:
        found = Load(client)
        callers = [
            asyncio.create_task(found.call_until_the_end(number)) for number in range(CALLERS)
        ]
        try:
            yield found
        finally:
            found.ending = True
            await asyncio.gather(*callers)
        assert found.failures == []
        for start in range(0, len(found.acknowledged), 1000):
            answer = await client.batch_get(found.acknowledged[start : start + 1000])
            assert not answer.missing_ids
