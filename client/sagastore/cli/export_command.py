"""The command that writes everything a server holds into a file."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Protocol

from sagastore import AsyncClient, SagaStoreError
from sagastore.cli import records
from sagastore.cli.daemon_thread import run_in_daemon_thread
from sagastore.cli.failures import CommandError, StoppedError, complain, explain
from sagastore.cli.output import print_json
from sagastore.cli.part_file import PartFile, State
from sagastore.cli.progress import Meter, duration, rate_of
from sagastore.cli.raw_export import Batch, export_lines
from sagastore.cli.settings import Settings

__all__ = ["export_file"]

_COUNT_SECONDS = 5.0


class _Sink(Protocol):
    """Where an export goes."""

    name: str

    def begin(self) -> State:
        """Return how far an earlier run came."""

    async def write(self, batch: Batch) -> None:
        """Take a batch."""

    def pause(self) -> str:
        """Keep what is there for the next run; return how to go on."""

    async def finish(self) -> None:
        """Make it what it was to become."""


class _Stream:
    """Standard output, or a file that is none: a pipe, a device."""

    def __init__(self, path: Path | None) -> None:
        self.name = "standard output" if path is None else str(path)
        self._path = path
        self._fd: int | None = None

    def begin(self) -> State:
        """Return the very beginning: what was written is out of reach."""
        return State()

    async def write(self, batch: Batch) -> None:
        """Write the batch at once, or as soon as somebody reads it."""
        await run_in_daemon_thread(partial(self._write, batch.lines))

    def _write(self, lines: bytes) -> None:
        file = self._opened()
        left = memoryview(lines)
        while left:
            left = left[os.write(file, left) :]

    def _opened(self) -> int:
        if self._fd is None:
            # Not sys.stdout, whose lock the end of the process needs. A pipe with a
            # name opens once somebody reads it.
            self._fd = 1 if self._path is None else os.open(self._path, os.O_WRONLY)
        return self._fd

    def pause(self) -> str:
        """Say that there is no way to go on."""
        return "what was written is not complete"

    async def finish(self) -> None:
        """Let who reads a pipe see its end, also where there was nothing to write."""
        await run_in_daemon_thread(self._opened)


async def export_file(settings: Settings, file: str, *, restart: bool) -> int:
    """Write every message, ordered by id; return the exit status."""
    sink = _sink(settings, file, restart=restart)
    export = _Export(settings, sink)
    async with settings.client() as client:
        await export.run(client)
    export.show_summary(to_stdout=file == "-")
    return 0


def _sink(settings: Settings, file: str, *, restart: bool) -> _Sink:
    if file == "-":
        return _Stream(None)
    # A link stays, and what it leads to is replaced.
    path = Path(file).expanduser().resolve()
    if path.is_dir():
        raise CommandError(f"cannot write {file}: it is a directory")
    if path.exists() and not path.is_file():
        return _Stream(path)
    return PartFile(file, path, settings.target, restart=restart)


class _Export:
    """One run of an export."""

    def __init__(self, settings: Settings, sink: _Sink) -> None:
        self._settings = settings
        self._sink = sink
        self._messages = self._before = self._bytes = 0
        self._begun = time.monotonic()

    async def run(self, client: AsyncClient) -> None:
        """Write what is not written yet.

        Raises:
            StoppedError: Somebody asked to stop.
            CommandError: The server cannot be reached, or the file not written.
        """
        start = self._sink.begin()
        self._messages = self._before = start.messages
        self._bytes = start.bytes
        if start.messages:
            complain(
                f"going on after the {start.messages:,} messages of the run before; "
                "--restart begins anew"
            )
        try:
            await self._write_all(client, start.resume_token)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise StoppedError(f"interrupted; {self._sink.pause()}") from None
        except SagaStoreError as exc:
            raise CommandError(f"{explain(exc)}; {self._sink.pause()}") from None
        except BrokenPipeError:
            raise
        except OSError as exc:
            reason = f"cannot write {self._sink.name}: {exc.strerror}"
            raise CommandError(f"{reason}; {self._sink.pause()}") from None

    async def _write_all(self, client: AsyncClient, resume_token: str) -> None:
        meter = await self._meter(client)
        try:
            await self._transfer(client, resume_token, meter)
            await self._sink.finish()
        finally:
            meter.close()

    async def _transfer(self, client: AsyncClient, resume_token: str, meter: Meter) -> None:
        batches = export_lines(client, resume_token, self._settings.stream_timeout)
        async with aclosing(batches):
            async for batch in batches:
                await self._sink.write(batch)
                self._messages += batch.messages
                self._bytes += len(batch.lines)
                meter.update(self._messages, self._messages)

    async def _meter(self, client: AsyncClient) -> Meter:
        # A bar between the lines on one terminal would garble both.
        mixed = isinstance(self._sink, _Stream) and sys.stdout.isatty()
        quiet = self._settings.quiet or mixed
        return Meter(
            "exporting",
            total=None if quiet else await _count(client),
            done=self._messages,
            rows=self._messages,
            quiet=quiet,
        )

    def show_summary(self, *, to_stdout: bool) -> None:
        """Say what has been written; not among the messages."""
        seconds = time.monotonic() - self._begun
        rate = (self._messages - self._before) / seconds if seconds > 0 else 0.0
        if to_stdout:
            if not self._settings.quiet:
                sys.stdout.flush()
                complain(f"{self._messages:,} messages in {duration(seconds)}")
        elif self._settings.as_json:
            values = {
                "file": self._sink.name,
                "target": self._settings.target,
                "messages": self._messages,
                "bytes": self._bytes,
                "resumed_after": self._before,
                "seconds": round(seconds, 3),
                "messages_per_second": round(rate, 1),
            }
            print_json(records.document(values))
        else:
            from sagastore.cli.console import screen

            out = screen()
            what = f" {self._messages:,} messages ({self._bytes:,} bytes) to {self._sink.name}"
            out.line(("Exported", "bold"), what)
            after = f", after {self._before:,} before" if self._before else ""
            out.line(f"in {duration(seconds)}, {rate_of(rate, 1.0)}{after}", indent=2)


async def _count(client: AsyncClient) -> int | None:
    """Return how many messages there are about; None where nobody says."""
    try:
        state = await client.migration.get(timeout=_COUNT_SECONDS)
    except SagaStoreError:
        return None  # If it matters, the export itself will say so.
    return next((store.messages for store in state.stores if store.messages is not None), None)
