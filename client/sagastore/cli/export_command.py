"""The `export` command."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Protocol

from sagastore import AsyncClient, Consistency, SagaStoreError
from sagastore.cli import records
from sagastore.cli.daemon_thread import run_in_daemon_thread
from sagastore.cli.failures import CommandError, StoppedError, complain, explain
from sagastore.cli.output import print_json
from sagastore.cli.output_folder import OutputFolder
from sagastore.cli.part_file import PartFile, State
from sagastore.cli.progress import Meter, duration, rate_of
from sagastore.cli.raw_export import Batch, export_lines
from sagastore.cli.settings import Settings
from sagastore.commandline.text import counted

__all__ = ["export_file"]

_COUNT_SECONDS = 5.0


class _Sink(Protocol):
    """The destination of an export."""

    name: str

    def begin(self) -> State:
        """Return the state of an earlier run."""

    async def write(self, batch: Batch) -> None:
        """Write a batch."""

    def pause(self) -> str:
        """Save the state for the next run; return how to resume."""

    async def finish(self) -> None:
        """Complete the destination."""


class _Stream:
    """Standard output, a pipe or a device."""

    def __init__(self, folder: OutputFolder | None) -> None:
        self.name = "standard output" if folder is None else str(folder.path)
        self._folder = folder
        self._fd: int | None = None

    def begin(self) -> State:
        """Return the start: a stream cannot be resumed."""
        return State()

    async def write(self, batch: Batch) -> None:
        """Write the batch; waits until a reader accepts it."""
        await run_in_daemon_thread(partial(self._write, batch.lines))

    def _write(self, lines: bytes) -> None:
        file = self._opened()
        left = memoryview(lines)
        while left:
            left = left[os.write(file, left) :]

    def _opened(self) -> int:
        if self._fd is None:
            # Not sys.stdout, whose lock the exit of the process needs. Opening a named
            # pipe waits for a reader.
            folder = self._folder
            self._fd = 1 if folder is None else folder.open_stream(folder.name)
        return self._fd

    def pause(self) -> str:
        """Return that the output is incomplete."""
        return "the output is incomplete"

    async def finish(self) -> None:
        """Open a pipe even without messages, so that its reader sees the end."""
        await run_in_daemon_thread(self._opened)


async def export_file(
    settings: Settings, file: str, *, restart: bool, consistency: Consistency | None
) -> int:
    """Write all messages in the order of first storage; return the exit status."""
    sink = _sink(settings, file, restart=restart)
    export = _Export(settings, sink, consistency)
    async with settings.client() as client:
        await export.run(client)
    export.show_summary(to_stdout=file == "-")
    return 0


def _sink(settings: Settings, file: str, *, restart: bool) -> _Sink:
    if file == "-":
        return _Stream(None)
    try:
        # A symbolic link remains; its target is replaced.
        folder = OutputFolder(Path(file))
        found = folder.status(folder.name)
    except OSError as exc:
        raise CommandError(f"cannot write {file}: {exc.strerror}") from None
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise CommandError(f"cannot write {file}: it is a directory")
    if found is not None and not stat.S_ISREG(found.st_mode):
        return _Stream(folder)
    return PartFile(file, folder, settings.target, restart=restart)


class _Export:
    """One run of an export."""

    def __init__(self, settings: Settings, sink: _Sink, consistency: Consistency | None) -> None:
        self._settings = settings
        self._sink = sink
        self._consistency = consistency
        self._messages = self._before = self._bytes = 0
        self._begun = time.monotonic()

    async def run(self, client: AsyncClient) -> None:
        """Write the remaining messages.

        Raises:
            StoppedError: The command was interrupted.
            CommandError: The server cannot be reached, or the file cannot be written.
        """
        start = self._sink.begin()
        self._messages = self._before = start.messages
        self._bytes = start.bytes
        if start.messages:
            complain(
                f"resuming after {counted(start.messages, 'message')} of the interrupted run; "
                "--restart starts from the beginning"
            )
        try:
            await self._write_all(client, start.resume_token)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise StoppedError(f"interrupted; {self._sink.pause()}") from None
        except SagaStoreError as exc:
            raise CommandError(f"{explain(exc)}; {self._sink.pause()}", exc) from None
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
        batches = export_lines(
            client, resume_token, self._settings.stream_timeout, self._consistency
        )
        async with aclosing(batches):
            async for batch in batches:
                await self._sink.write(batch)
                self._messages += batch.messages
                self._bytes += len(batch.lines)
                meter.update(self._messages, self._messages)

    async def _meter(self, client: AsyncClient) -> Meter:
        # On one terminal, a progress bar would mix with the lines.
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
        """Print the summary, on standard error if the messages are on standard output."""
        seconds = time.monotonic() - self._begun
        rate = (self._messages - self._before) / seconds if seconds > 0 else 0.0
        if to_stdout:
            if not self._settings.quiet:
                sys.stdout.flush()
                complain(f"{counted(self._messages, 'message')} in {duration(seconds)}")
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
            size = f"{counted(self._messages, 'message')} ({counted(self._bytes, 'byte')})"
            out.line(("Exported", "bold"), f" {size} to {self._sink.name}")
            after = f", after {self._before:,} before" if self._before else ""
            out.line(f"in {duration(seconds)}, {rate_of(rate, 1.0)}{after}", indent=2)


async def _count(client: AsyncClient) -> int | None:
    """Return the approximate number of messages; None if it is unknown."""
    try:
        state = await client.migration.get(timeout=_COUNT_SECONDS)
    except SagaStoreError:
        return None  # The export itself reports errors that matter.
    return next((store.messages for store in state.stores if store.messages is not None), None)
