"""Fuzz campaign against one server: many clients, one canary, and a resource check."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
from grpc import aio

from sagastore import AsyncClient, Phase
from tests.support.migration_control import go_to
from tools.fuzz import answer_check, fuzz_input, grpc_client, input_mix, raw_client, resource_limits
from tools.fuzz.canary import Canary
from tools.fuzz.report import Report
from tools.fuzz.watched_server import WatchedServer

CLIENTS = 32
CONNECTIONS = 6
IDLE = 100
"""Idle connections of each kind that are open throughout."""
_ENOUGH = 20
"""Number of failures after which the campaign ends."""
_IDLE_BYTES = (b"", b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00")
_WRONG_IN_LOG = re.compile(
    r"internal error|Traceback|background task|never retrieved|never awaited|"
    r"was destroyed but|Segmentation"
)
_OF_THE_LIBRARY = re.compile(
    r"Invalid encoding on |ExecuteBatchError raised in core|Failed sending error status|"
    r"Unexpected \[UnicodeDecodeError\]"
)
"""Log lines of gRPC itself: about headers or paths that are not text, and about answers that cannot
be sent because the client has disconnected. They do not indicate a defect of the service.
"""
_WALK = (
    Phase.SQLITE_ONLY,
    Phase.DUAL_WRITE,
    Phase.BACKFILL,
    Phase.READ_POSTGRES,
    Phase.BACKFILL,
    Phase.READ_POSTGRES,
    Phase.POSTGRES_ONLY,
)
"""Phases of a service with both stores, each with an equal share of the inputs."""


class Options(NamedTuple):
    """Options of a campaign."""

    inputs: int
    seed: str
    folder: Path
    """Folder for failing inputs."""
    warm_up: int = 2000
    """Number of inputs before the first resource count."""


class Campaign:
    """Sends inputs to the running ``server`` and checks every answer."""

    def __init__(
        self, server: WatchedServer, place: str, options: Options, say: Callable[[str], None]
    ) -> None:
        self._server = server
        self._options = options
        self._say = say
        self._began = 0.0
        self._pid = server.pid
        self._under_way: set[fuzz_input.Input] = set()
        self._channels: list[aio.Channel] = []
        self.report = Report(place, options.seed)

    async def run(self, *, phases: bool = False) -> Report:
        """Run the campaign and return its report.

        With ``phases``, a service with both stores goes through its migration meanwhile.
        """
        async with AsyncExitStack() as stack:
            for _ in range(CONNECTIONS):
                channel = grpc_client.channel(self._server.address)
                self._channels.append(await stack.enter_async_context(channel))
            canary_channel = grpc_client.channel(self._server.address)
            canary = Canary(await stack.enter_async_context(canary_channel))
            await self._send(f"{self._options.seed}-warm-up", self._options.warm_up)
            self.report.before = await resource_limits.wait_until_idle(self._server)
            self._forget()
            self._began = time.monotonic()
            async with self._running_canary(canary):
                await self._all(phases)
            self.report.seconds = time.monotonic() - self._began
            await self._end(canary)
        return self.report

    async def _all(self, phases: bool) -> None:
        async with self._idle_connections():
            if not phases:
                half = self._options.inputs // 2
                await self._send(self._options.seed, half)
                self.report.middle = await resource_limits.wait_until_idle(self._server)
                await self._send(self._options.seed, self._options.inputs - half, first=half)
                return
            for number, phase in enumerate(_WALK):
                async with AsyncClient(self._server.address, timeout=120) as operator:
                    await _reset_backfill(operator)
                    await go_to(operator, phase)
                self._say(f"the phase is {phase.label.lower()}")
                seed = f"{self._options.seed}-{number}"
                await self._send(seed, self._options.inputs // len(_WALK))

    async def _end(self, canary: Canary) -> None:
        report = self.report
        report.canary_calls, report.canary_refused = canary.calls, canary.refused
        if not self._is_alive():
            return
        with self._noted("the canary's messages"):
            report.canary_messages = await canary.verify_saved()
        if report.before is not None:
            level = report.middle if self._options.inputs >= 2 * resource_limits.LEVEL else None
            report.after, growth = await resource_limits.wait_until_settled(
                self._server, report.before, level
            )
            report.failures += [f"resource growth: {what}" for what in growth]
        self._options.folder.mkdir(parents=True, exist_ok=True)
        log = self._options.folder / f"{self._options.seed}.log"
        log.write_text("\n".join(self._server.stderr), encoding="utf-8")
        wrong = wrong_lines(self._server.stderr)
        report.failures += [f"log: {line[:3000]}" for line in wrong[:_ENOUGH]]

    # ------------------------------------------------------------------ sending

    async def _send(self, seed: str, count: int, first: int = 0) -> None:
        numbers = iter(range(first, first + count))

        async def client() -> None:
            for number in numbers:
                if len(self.report.failures) >= _ENOUGH or not self._is_alive():
                    return
                await self._one(input_mix.made(seed, number), number)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    async def _one(self, one: fuzz_input.Input, number: int) -> None:
        self._under_way.add(one)
        try:
            answers = await send(self._server.address, self._channels[number % CONNECTIONS], one)
        except (AssertionError, OSError) as exc:
            self._failed(one, f"{type(exc).__name__}: {exc}")
            return
        finally:
            self._under_way.discard(one)
        self.report.count(one, (answer.code.name for answer in answers))
        for complaint in answer_check.complaints(one, answers):
            self._failed(one, complaint)
        if self.report.inputs % 1000 == 0:
            self._progress()

    def _failed(self, one: fuzz_input.Input, complaint: str) -> None:
        self._options.folder.mkdir(parents=True, exist_ok=True)
        path = self._options.folder / f"{one.name}.json"
        fuzz_input.save(one, path)
        self.report.failures.append(f"{one.kind} {one.method}: {complaint} ({path})")
        self._say(self.report.failures[-1])

    def _is_alive(self) -> bool:
        """Whether the original process is alive; if not, save the inputs in progress."""
        if self._server.alive and self._server.pid == self._pid:
            return True
        if not any(failure.startswith("the server ended") for failure in self.report.failures):
            self.report.failures.append("the server ended; its log: " + self._server.stderr[-1])
            for one in list(self._under_way):
                self._failed(one, "in progress when the server ended")
        return False

    def _progress(self) -> None:
        seconds = time.monotonic() - self._began
        done = self.report.inputs
        self._say(
            f"{self.report.place}: {done:,} of {self._options.inputs:,} inputs, "
            f"{done / seconds:,.0f} a second, {len(self.report.failures)} failures"
        )

    def _forget(self) -> None:
        """Remove the warm-up from the figures, but not its failures."""
        self.report.kinds.clear()
        self.report.statuses.clear()

    # ------------------------------------------------------------------ background

    @contextlib.asynccontextmanager
    async def _running_canary(self, canary: Canary) -> AsyncIterator[None]:
        singing = asyncio.create_task(canary.run())
        try:
            yield
        finally:
            canary.stop()
            with self._noted("the canary"):
                await singing

    @contextlib.contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        try:
            yield
        except (AssertionError, grpc.RpcError) as exc:
            self.report.failures.append(f"{what}: {exc}")

    @contextlib.asynccontextmanager
    async def _idle_connections(self) -> AsyncIterator[None]:
        """Keep connections open that send nothing, or never complete a request."""
        async with AsyncExitStack() as stack:
            for data in _IDLE_BYTES * IDLE:
                connection = raw_client.connected(self._server.address)
                _, writer = await stack.enter_async_context(connection)
                writer.write(data)
            yield


def wrong_lines(log: list[str]) -> list[str]:
    """Return the log lines that indicate a defect."""
    return [
        line
        for before, line in itertools.pairwise(["", *log])
        if _WRONG_IN_LOG.search(line)
        and not _OF_THE_LIBRARY.search(line)
        # gRPC prints the traceback of one of its lines again after it.
        and not (line.startswith("Traceback") and _OF_THE_LIBRARY.search(before))
    ]


async def _reset_backfill(operator: AsyncClient) -> None:
    """Undo backfill settings that inputs have changed."""
    if (await operator.migration.get()).phase is Phase.BACKFILL:
        await operator.migration.control_backfill(
            paused=False, batch_size=500, max_rows_per_second=0
        )


async def send(
    address: str, channel: aio.Channel, one: fuzz_input.Input
) -> list[answer_check.Answer]:
    """Send ``one`` and return the results of its calls."""
    if one.steps:
        return await raw_client.send(address, one)
    return await grpc_client.call(channel, one)
