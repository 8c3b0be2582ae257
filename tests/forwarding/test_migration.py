"""Migrations with several servers: clients list all addresses from the first day.

Real processes and a real PostgreSQL. The clients use the default retry policy.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from sagastore import AsyncClient, Message, Phase, RetryPolicy
from tests.support.checker import Checker, Value
from tests.support.legacy_sample import legacy_sample
from tests.support.migration_control import change, go_to
from tests.support.ports import ReservedPort
from tests.support.postgres import fresh_schema, postgres_process
from tests.support.server_process import ServerProcess
from tests.support.traffic import FOUND_WORDS, WORDS, Settings
from tests.support.traffic_clients import traffic
from tests.support.waiting import until

CALLS = 80
"""Calls between two steps of the operator."""


class Fleet(NamedTuple):
    """A holder and its forwarders."""

    holder: ServerProcess
    forwarders: list[ServerProcess]

    @property
    def addresses(self) -> str:
        """The addresses of all of them."""
        return ",".join(server.address for server in (self.holder, *self.forwarders))

    async def until_forwarding(self, phase: str) -> None:
        """Wait until all forwarders have seen ``phase``."""
        for server in self.forwarders:
            await until(
                lambda server=server: any(  # type: ignore[misc]
                    event.get("event") == "forwarding" and event["phase"] == phase
                    for event in server.events
                )
            )


@asynccontextmanager
async def fleet(folder: Path, dsn: str, forwarders: int = 2) -> AsyncIterator[Fleet]:
    """Run a holder on ``memory.db`` and forwarders that know its address."""
    holder = ServerProcess(folder / "memory.db", env={"SAGASTORE_POSTGRES": dsn})
    others: list[ServerProcess] = []
    try:
        await asyncio.to_thread(holder.start)
        for _ in range(forwarders):
            options = ("--forward", "--forward-to", holder.address)
            others.append(ServerProcess(folder / "none.db", *options, postgres=dsn))
        for server in others:
            server.spawn()
        for server in others:
            await asyncio.to_thread(server.wait_for_event, "forwarding")
        yield Fleet(holder, others)
    finally:
        for server in (*others, holder):
            server.close()


async def test_migration_through_all_servers_fails_no_call(tmp_path: Path) -> None:
    """The whole way, back once, and at the end the former holder stops under load."""
    sample = legacy_sample(tmp_path / "memory.db", 400)
    checker = Checker()
    checker.track((*WORDS, *FOUND_WORDS))
    async with (
        fresh_schema() as dsn,
        fleet(tmp_path, dsn) as servers,
        AsyncClient(servers.forwarders[0].address, timeout=60) as operator,
    ):
        async for message in operator.export():
            checker.known(message)
        assert len(checker.ids) == sample.served
        settings = Settings(3, retry=RetryPolicy(), timeout=30, everywhere=False)
        async with traffic(checker, servers.addresses, settings) as running:
            for phase in (Phase.DUAL_WRITE, Phase.SQLITE_ONLY, Phase.READ_POSTGRES):
                await running.during(go_to(operator, phase))
                await running.more(CALLS)
            await running.during(change(operator, Phase.POSTGRES_ONLY))
            await running.more(CALLS)
            for server in servers.forwarders:
                await asyncio.to_thread(server.wait_for_event, "serving")
            assert await asyncio.to_thread(servers.holder.terminate) == 0
            await running.more(CALLS)
        assert running.failed == 0
        assert running.calls["Export"]
        for server in servers.forwarders:
            async with AsyncClient(server.address) as client:
                assert (await client.migration.get()).phase is Phase.POSTGRES_ONLY
                stored = {one.id: Value.of(one) async for one in client.export()}
                assert stored == checker.settled()


async def test_forwarders_find_a_holder_that_was_frozen_or_killed(tmp_path: Path) -> None:
    """The killed one is restarted at its address, and then at others."""
    async with fresh_schema() as dsn, fleet(tmp_path, dsn) as servers:
        holder = servers.holder
        async with AsyncClient(
            ",".join(server.address for server in servers.forwarders), timeout=60
        ) as client:
            await client.save(Message("openai", "user", "first", id="m-0"))
            await client.migration.change_phase(Phase.DUAL_WRITE)
            # From now on, PostgreSQL names the holder.
            await servers.until_forwarding("dual-write")
            await _freeze(servers, client)
            for number in range(1, 4):
                saving = asyncio.create_task(
                    _save_until_told(client, f"round {number}", told := asyncio.Event())
                )
                await asyncio.to_thread(holder.kill9)
                if number > 1:
                    holder.address = "127.0.0.1:0"
                await asyncio.to_thread(holder.start)
                await client.save(Message("openai", "user", "again", id=f"m-{number}"))
                told.set()
                saved = await saving
                assert saved
                found = await client.batch_get([f"m-{number}", *saved])
                assert not found.missing_ids
            assert await asyncio.to_thread(holder.terminate) == 0


async def _freeze(servers: Fleet, client: AsyncClient) -> None:
    """Freeze the holder until its forwarders have noticed it; a call meanwhile waits."""
    os.kill(servers.holder.pid, signal.SIGSTOP)
    try:
        for server in servers.forwarders:
            event = await asyncio.to_thread(server.wait_for_event, "holder not available")
            assert event["reason"] == "it did not answer within 2 s"
        saving = asyncio.create_task(
            client.save(Message("openai", "user", "while frozen", id="frozen"))
        )
    finally:
        os.kill(servers.holder.pid, signal.SIGCONT)
    await saving
    assert (await client.get("frozen")).content == "while frozen"


async def _save_until_told(client: AsyncClient, content: str, told: asyncio.Event) -> list[str]:
    ids = []
    while not told.is_set():
        ids.append((await client.save(Message("openai", "user", content))).id)
    return ids


async def test_forwarders_go_on_without_postgresql(tmp_path: Path) -> None:
    with postgres_process() as postgres:
        async with (
            fleet(tmp_path, postgres.dsn, 1) as servers,
            AsyncClient(servers.forwarders[0].address, timeout=60) as client,
        ):
            await client.migration.change_phase(Phase.DUAL_WRITE)
            await servers.until_forwarding("dual-write")
            postgres.stop()
            await asyncio.to_thread(
                servers.forwarders[0].wait_for_event, "migration record not read"
            )
            await client.save(Message("openai", "user", "without PostgreSQL", id="m-1"))
            assert (await client.get("m-1")).content == "without PostgreSQL"
            postgres.start()
            await go_to(client, Phase.POSTGRES_ONLY)
            await asyncio.to_thread(servers.forwarders[0].wait_for_event, "serving")
            await asyncio.to_thread(servers.holder.kill9)
            assert (await client.get("m-1")).content == "without PostgreSQL"


async def test_server_without_sqlite_during_and_after_a_migration(tmp_path: Path) -> None:
    """During it, a start without --forward suggests that; afterwards --forward has no effect."""
    async with fresh_schema() as dsn:
        async with fleet(tmp_path, dsn, 0) as servers:
            async with AsyncClient(servers.holder.address, timeout=60) as client:
                await client.save(Message("openai", "user", "hello", id="m-1"))
                await client.migration.change_phase(Phase.DUAL_WRITE)
                early = ServerProcess(tmp_path / "none.db", postgres=dsn)
                early.spawn()
                assert await asyncio.to_thread(early.wait) == 1
                assert "set --forward to pass calls on to its server until then" in early.stderr[-1]
                await go_to(client, Phase.POSTGRES_ONLY)
            assert await asyncio.to_thread(servers.holder.terminate) == 0
        late = ServerProcess(tmp_path / "none.db", "--forward", postgres=dsn)
        try:
            await asyncio.to_thread(late.start)
            assert not any(event["event"] == "forwarding starts" for event in late.events)
            async with AsyncClient(late.address) as client:
                assert (await client.get("m-1")).content == "hello"
        finally:
            late.close()


async def test_status_says_why_calls_cannot_be_forwarded(tmp_path: Path) -> None:
    """The forwarder has its own address as that of the holder."""
    own, ops, unused = ReservedPort(), ReservedPort(), ReservedPort()
    server = ServerProcess(
        tmp_path / "none.db",
        *("--forward", "--forward-to", own.address),
        postgres=f"postgresql://user@{unused.address}/nothing",
        env={"SAGASTORE_OPS_LISTEN": ops.address},
    )
    server.address = own.address
    try:
        server.spawn()
        await asyncio.to_thread(server.wait_for_event, "holder not available")
        command = [sys.executable, "-m", "sagastore_server", "status", "--ops", ops.address]
        done = await asyncio.to_thread(
            subprocess.run, [*command, "--json"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        document = json.loads(done.stdout)
        assert document["forwarding_to"] == own.address
        (reason,) = document["reasons"]
        assert reason["reason"] == "HOLDER_UNREACHABLE"
        assert "forwards its calls" in reason["detail"]
        assert own.address in reason["detail"]
    finally:
        server.close()
        for port in (own, ops, unused):
            port.close()
