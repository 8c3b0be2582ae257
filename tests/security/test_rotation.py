"""Reload of tokens and certificates while clients are connected."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from sagastore import (
    TLS,
    AsyncClient,
    Client,
    Message,
    RetryPolicy,
    TokenFile,
    UnauthenticatedError,
    UnavailableError,
)
from sagastore.v1 import (
    migration_pb2,
    migration_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
)
from tests.security.pki import CLIENT, Pki, chain, entry, environment, key, write_access
from tests.support.messages import batch, message
from tests.support.server_process import STARTUP_SECONDS, ServerProcess
from tests.support.waiting import eventually

ONCE = RetryPolicy(max_attempts=1)
OTHER = entry("token", "other", "admin", token="other-token")
GONE = entry("token", "gone", "admin", token="gone-token")


class Guarded:
    """A server on loopback, and its access file."""

    def __init__(self, folder: Path) -> None:
        self.access = write_access(folder / "access.toml", GONE, OTHER)
        self.server = ServerProcess(folder / "saga.db", env=environment(access=self.access))

    def change(self, *entries: str) -> None:
        """Write the file, and wait until it is reloaded."""
        times = events(self.server, "access file reloaded") + 1
        write_access(self.access, *entries)
        self.logged("access file reloaded", times)

    def logged(self, name: str, times: int) -> None:
        """Wait until the log has an event ``times`` times."""
        eventually(lambda: events(self.server, name) >= times)


def events(server: ServerProcess, name: str) -> int:
    return sum(event.get("event") == name for event in list(server.events))


@pytest.fixture(scope="module")
def server_and_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    guarded = Guarded(tmp_path_factory.mktemp("guarded"))
    try:
        guarded.server.start()
        yield guarded
    finally:
        guarded.server.close()


@pytest.fixture
def guarded(server_and_file: Guarded) -> Guarded:
    """Return the server with its original access file."""
    if server_and_file.access.read_text() != "\n".join((GONE, OTHER)):
        server_and_file.change(GONE, OTHER)
    return server_and_file


class Streams:
    """One stream of each kind, opened by one caller."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self._metadata = [("authorization", f"Bearer {token}")]
        storage = storage_pb2_grpc.StorageServiceStub(channel)
        migration = migration_pb2_grpc.MigrationServiceStub(channel)
        self._idle = threading.Event()
        first = batch(1, message(id="streamed"))
        self.watch = self._open(migration.WatchMigration, migration_pb2.WatchMigrationRequest())
        # More than the buffers hold, so that the server blocks in the middle.
        self.export = self._open(storage.Export, storage_pb2.ExportRequest(batch_size=100))
        self.bulk = self._open(storage.BulkSave, self._one_and_then_nothing(first))
        for stream in (self.watch, self.export, self.bulk):
            next(stream)

    def _open(self, method: Any, request: Any) -> Any:
        return method(request, metadata=self._metadata)

    def _one_and_then_nothing(
        self, request: storage_pb2.BulkSaveRequest
    ) -> Iterator[storage_pb2.BulkSaveRequest]:
        yield request
        self._idle.wait(STARTUP_SECONDS)

    def codes(self) -> list[grpc.StatusCode]:
        """Return the status code of each stream."""
        for stream in (self.watch, self.export, self.bulk):
            with suppress(grpc.RpcError):
                for _ in stream:
                    pass
        self._idle.set()
        return [stream.code() for stream in (self.watch, self.export, self.bulk)]

    def cancel(self) -> None:
        self._idle.set()
        for stream in (self.watch, self.export, self.bulk):
            stream.cancel()


def fill(address: str) -> None:
    """Store enough messages that an export takes some time."""
    with Client(address, token="other-token") as client:
        client.bulk_save(Message("openai", "user", "x" * 4_000, id=f"{n:05}") for n in range(4_000))


def test_stream_ends_when_its_token_is_revoked(guarded: Guarded) -> None:
    fill(guarded.server.address)
    with guarded.server.channel() as channel, guarded.server.channel() as another:
        gone, other = Streams(channel, "gone-token"), Streams(another, "other-token")
        guarded.change(OTHER)
        assert gone.codes() == [grpc.StatusCode.UNAUTHENTICATED] * 3
        next(other.watch)
        assert sum(len(answer.messages) for answer in other.export) > 3_000
        other.cancel()
        # A lower role ends the streams that it does not permit, and no others.
        fewer = Streams(another, "other-token")
        guarded.change(entry("token", "other", "reader", token="other-token"))
        assert sum(len(answer.messages) for answer in fewer.export) > 3_000
        with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
            list(fewer.watch)
        with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
            list(fewer.bulk)
        fewer.cancel()


def test_stream_ends_when_its_token_expires(guarded: Guarded) -> None:
    end = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
    brief = entry("token", "brief", "admin", token="brief-token", more=f"expires = {end}")
    guarded.change(OTHER, brief)
    with guarded.server.channel() as channel:
        stub = migration_pb2_grpc.MigrationServiceStub(channel)
        watch = stub.WatchMigration(
            migration_pb2.WatchMigrationRequest(),
            metadata=(("authorization", "Bearer brief-token"),),
        )
        with pytest.raises(grpc.RpcError, match="the token of 'brief' has expired") as caught:
            for _ in watch:
                pass
        assert "UNAUTHENTICATED" in str(caught.value)


def test_invalid_access_file_is_not_reloaded(guarded: Guarded) -> None:
    refused = "access file not reloaded; the previous rules apply"
    good = events(guarded.server, "access file reloaded")
    for number, text in enumerate(("[[token]", GONE + "rolle = 1"), 1):
        guarded.access.write_text(text)
        guarded.logged(refused, number)
    guarded.access.unlink()
    with Client(guarded.server.address, token="gone-token", retry=ONCE) as client:
        client.batch_get(["x"])
    assert events(guarded.server, "access file reloaded") == good
    guarded.access.write_text("")
    guarded.logged("access file reloaded", good + 1)
    with guarded.server.channel() as channel:
        stub = storage_pb2_grpc.StorageServiceStub(channel)
        for metadata in ((), (("authorization", "Bearer gone-token"),)):
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                stub.Get(storage_pb2.GetRequest(id="x"), metadata=metadata)


def test_token_is_revoked_after_a_certificate_without_expiry(tmp_path: Path) -> None:
    """In a time zone east of Greenwich the end of the year 9999 has no local time."""
    pki = Pki(tmp_path / "pki")
    access = write_access(tmp_path / "access.toml", GONE, OTHER)
    settings = environment(pki.server(), None, access) | {"TZ": "Asia/Tokyo"}
    server = ServerProcess(tmp_path / "saga.db", env=settings)
    try:
        server.start()
        end = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
        pki.server(pki.issue("localhost", "127.0.0.1", not_after=end))
        eventually(lambda: events(server, "certificate reloaded") == 1)
        write_access(access, OTHER)
        eventually(lambda: events(server, "access file reloaded") == 1)
        tls = TLS(ca=pki.ca)
        with (
            Client(server.address, tls=tls, token="gone-token", retry=ONCE) as client,
            pytest.raises(UnauthenticatedError),
        ):
            client.get("x")
    finally:
        server.close()


async def test_client_continues_with_a_new_token_file(guarded: Guarded, tmp_path: Path) -> None:
    """A stream that was opened with a revoked token continues with the new one."""
    file = tmp_path / "token"
    file.write_text("gone-token")
    numbers = iter(range(10_000_000))
    stop = asyncio.Event()

    async def endless() -> AsyncIterator[Message]:
        while not stop.is_set():
            yield Message("openai", "user", "hello", id=f"follow-{next(numbers)}")
            await asyncio.sleep(0.001)

    async with AsyncClient(guarded.server.address, token=TokenFile(file)) as client:
        watch = client.migration.watch()
        await anext(watch)
        saving = asyncio.create_task(client.bulk_save(endless(), batch_size=10))
        file.write_text("other-token")
        await asyncio.to_thread(guarded.change, OTHER)
        for _ in range(3):
            await anext(watch)
        stop.set()
        result = await saving
        # The batches in flight were sent again, and some may have been stored before.
        assert result.saved + result.unchanged == result.total == next(numbers)
        stored = {message.id async for message in client.export()}
        assert {f"follow-{n}" for n in range(result.total)} <= stored
        await watch.aclose()


class Load:
    """Callers that reconnect for each call, and callers that stay connected. None may fail."""

    def __init__(self, address: str, token_file: Path) -> None:
        self.address = address
        self.tls = TLS()
        self.token_file = token_file
        self.failures: list[str] = []
        self.calls = 0
        self.connections = 0
        self.rounds = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = False

    def start(self) -> None:
        callers = [self._new_each_time(n) for n in range(3)] + [self._stays(n) for n in range(2)]
        self._tasks = [asyncio.create_task(caller) for caller in callers]

    async def stop(self) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def settle(self) -> None:
        """Wait until every reconnecting caller has reconnected."""
        before = self.connections
        while self.connections < before + 9 and not self.failures:  # noqa: ASYNC110 - tasks count
            await asyncio.sleep(0.01)

    async def _new_each_time(self, number: int) -> None:
        while not self._stop:
            token = self.token_file.read_text()
            async with AsyncClient(self.address, tls=self.tls, token=token, retry=ONCE) as client:
                await self._call(client, f"new-{number}")
            self.connections += 1
            await asyncio.sleep(0.02)

    async def _stays(self, number: int) -> None:
        token = TokenFile(self.token_file)
        async with AsyncClient(self.address, tls=self.tls, token=token, retry=ONCE) as client:
            while not self._stop:
                await self._call(client, f"stays-{number}")
                await asyncio.sleep(0.01)

    async def _call(self, client: AsyncClient, id: str) -> None:
        try:
            await client.save(Message("openai", "user", f"hello {self.calls}", id=id))
            await client.get(id)
        except Exception as exc:  # noqa: BLE001 - any error fails the test
            self.failures.append(f"{type(exc).__name__}: {exc}")
        self.calls += 1


async def test_rotation_under_load_fails_no_call(tmp_path: Path) -> None:
    """No valid caller fails while tokens, certificates and authorities are replaced."""
    old, new = Pki(tmp_path / "old"), Pki(tmp_path / "new")
    both = old.ca.read_bytes() + new.ca.read_bytes()
    # As in Kubernetes: the files are reached through a symbolic link that is replaced.
    live = tmp_path / "live"
    versions = {name: tmp_path / name for name in ("v1", "v2")}
    for folder, pki in (("v1", old), ("v2", new)):
        versions[folder].mkdir()
        leaf = pki.issue("127.0.0.1", "localhost")
        (versions[folder] / "server.pem").write_bytes(chain(leaf))
        (versions[folder] / "server.key").write_bytes(key(leaf))
    live.symlink_to(versions["v1"])
    client_ca = old.write("clients.pem", both)
    access = write_access(tmp_path / "access.toml", entry("token", "web", "writer", token="A"))
    token = tmp_path / "token"
    token.write_text("A")
    settings = environment((live / "server.pem", live / "server.key"), client_ca, access)
    server = ServerProcess(tmp_path / "saga.db", env=settings)

    async def logged(name: str, times: int = 1) -> None:
        await asyncio.to_thread(eventually, lambda: events(server, name) >= times)

    async def only_new_is_trusted() -> bool:
        leaf = new.issue(CLIENT)
        tls = TLS(ca=new.ca, cert=chain(leaf), key=key(leaf))
        async with AsyncClient(server.address, tls=tls, token="B", retry=ONCE) as client:
            try:
                await client.batch_get(["x"])
            except UnavailableError:
                return False
            return True

    try:
        server.start()
        load = Load(server.address, token)
        load.tls = TLS(ca=both, cert=chain(leaf := old.issue(CLIENT)), key=key(leaf))
        load.start()
        # Token A, then A and B, then B.
        first = entry("token", "web", "writer", token="A")
        second = entry("token", "web", "writer", token="B")
        write_access(access, first, second)
        await logged("access file reloaded")
        token.write_text("B")
        await load.settle()
        write_access(access, second)
        await logged("access file reloaded", 2)
        # A certificate of another authority, whose files are replaced one after the other.
        assert not await only_new_is_trusted()
        (versions["v1"] / "server.pem").write_bytes((versions["v2"] / "server.pem").read_bytes())
        await logged("certificate not reloaded")
        assert not await only_new_is_trusted()
        (versions["v1"] / "server.key").write_bytes((versions["v2"] / "server.key").read_bytes())
        await logged("certificate reloaded")
        assert await only_new_is_trusted()
        # Another one, by replacing the link.
        leaf = new.issue("127.0.0.1", "localhost")
        (versions["v2"] / "server.pem").write_bytes(chain(leaf))
        (versions["v2"] / "server.key").write_bytes(key(leaf))
        (tmp_path / "moving").symlink_to(versions["v2"])
        (tmp_path / "moving").replace(live)
        await logged("certificate reloaded", 2)
        # Clients get certificates of the new authority, then the old one is removed.
        load.tls = TLS(ca=new.ca, cert=chain(leaf := new.issue(CLIENT)), key=key(leaf))
        await load.settle()
        old.write("clients.pem", new.ca.read_bytes())
        await logged("certificate reloaded", 3)
        await load.settle()
        await load.stop()
        assert load.failures == []
        assert load.connections > 30
        stale = TLS(ca=new.ca, cert=chain(leaf := old.issue(CLIENT)), key=key(leaf))
        async with AsyncClient(server.address, tls=stale, token="B", retry=ONCE) as client:
            with pytest.raises(UnavailableError, match="does it trust the authority of the client"):
                await client.get("x")
        assert server.terminate() == 0
        assert events(server, "certificate not reloaded") == 1
    finally:
        server.close()
