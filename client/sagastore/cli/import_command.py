"""The `import` command."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sagastore import AsyncClient, BulkAck, Message, OnConflict, RejectedMessage, SagaStoreError
from sagastore.cli import import_summary
from sagastore.cli.checkpoint import Checkpoint, CheckpointFile, Counts, SourceChangedError
from sagastore.cli.failures import CommandError, StoppedError, complain, explain
from sagastore.cli.progress import Meter, duration
from sagastore.cli.reader_thread import read_ahead
from sagastore.cli.rejects import Rejects
from sagastore.cli.settings import Settings
from sagastore.commandline.exit_status import ExitStatus
from sagastore.commandline.text import counted
from sagastore.importers import Problem, Row, Source, open_source
from sagastore.importers.base import Position
from sagastore.importers.spool import DEFAULT_LIMIT

__all__ = ["ImportOptions", "import_file"]

_CHECKPOINT_SECONDS = 1.0
_SAMPLE_IDS = 8
# Rows that are read but not acknowledged. The client limits the messages in flight, but
# any number of invalid rows may be between them.
_MAX_PENDING = 50_000


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The options of `import`."""

    file: str
    on_conflict: str = "replace"
    batch_size: int = 1000
    rejects: Path | None = None
    restart: bool = False
    strict: bool = False
    temp_limit: int = DEFAULT_LIMIT


def import_file(settings: Settings, options: ImportOptions) -> Coroutine[Any, Any, int]:
    """Open a file; return the coroutine that imports it and returns the exit status.

    Raises:
        CommandError: The file cannot be read, or its format is not supported.
    """
    # Without a running event loop, so that Ctrl+C interrupts a read of standard input.
    return _load(settings, options, open_source(options.file, options.temp_limit))


async def _load(settings: Settings, options: ImportOptions, source: Source) -> int:
    try:
        _check_rejects(source, options)
        for note in source.notes:
            complain(note)
        async with settings.client() as client:
            run = _Import(settings, options, source, client)
            await run.run()
    finally:
        source.close()
    import_summary.show(settings, run.summary())
    return _status(run.counts, source, strict=options.strict)


def _status(counts: Counts, source: Source, *, strict: bool) -> int:
    """Return the exit status, and say why if it is not 0."""
    if not counts.saved + counts.unchanged + counts.skipped:
        why = "it has no messages"
        if counts.read:
            why = f"{counted(counts.read, 'row')} read, all rejected"
        complain(f"nothing of {source.name} was stored: {why}")
        return ExitStatus.INCOMPLETE
    left = counts.rejected + source.left_behind
    if strict and left:
        complain(
            f"not everything of {source.name} was stored: {counts.rejected:,} rejected, "
            f"{source.left_behind:,} left behind"
        )
        return ExitStatus.INCOMPLETE
    return 0


def _check_rejects(source: Source, options: ImportOptions) -> None:
    identity = source.identity()
    if options.rejects is None or identity is None:
        return
    if options.rejects.resolve() == Path(identity["path"]):
        raise CommandError("--rejects is the file to import; use another file")


def _state_folder() -> Path:
    import platformdirs

    return platformdirs.user_state_path("sagastore", appauthor=False) / "imports"


def _problem_of(reject: RejectedMessage) -> Problem:
    """Return the problem with the field names of import files."""
    field = "metadata" if reject.field == "metadata_json" else reject.field
    reason = reject.reason.replace("metadata_json", "metadata")
    return Problem(field, reason.removeprefix(field).lstrip(": ") or reason)


class _Import:
    """One run of an import."""

    def __init__(
        self, settings: Settings, options: ImportOptions, source: Source, client: AsyncClient
    ) -> None:
        self._settings = settings
        self._options = options
        self._source = source
        self._client = client
        self._rejects = Rejects(source, options.rejects)
        self._pending: deque[Row] = deque()
        self._sample_ids: list[str] = []
        self._begun = time.monotonic()
        self._seconds_before = 0.0
        self._read_before = 0
        self.counts = Counts()
        self._position: Position | None = None
        self._done = 0
        self._damage: CommandError | None = None
        # The first checkpoint is written after the first batch.
        self._last_checkpoint = -math.inf
        self._file = self._checkpoint_file()

    def _checkpoint_file(self) -> CheckpointFile | None:
        identity = self._source.identity()
        if identity is None:
            return None
        rejects = self._options.rejects
        options = {
            "on_conflict": self._options.on_conflict,
            "rejects": None if rejects is None else str(rejects.resolve()),
        }
        return CheckpointFile(_state_folder(), identity, self._settings.target, options)

    async def run(self) -> None:
        """Import all rows after the checkpoint.

        Raises:
            StoppedError: The command was interrupted.
            CommandError: The server cannot be reached, or the source cannot be read.
        """
        start = await self._find_start()
        total = await asyncio.to_thread(self._source.total, start)
        meter = Meter(
            "importing",
            total=total,
            done=self._done,
            rows=self.counts.read,
            quiet=self._settings.quiet,
        )
        finished = False
        try:
            await self._transfer(start, meter)
            self._require_sound_source()
            finished = True
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise StoppedError(self._with_resume_hint("interrupted")) from None
        except SagaStoreError as exc:
            raise CommandError(self._with_resume_hint(explain(exc)), exc) from None
        finally:
            meter.close()
            self._end(finished=finished)

    def _require_sound_source(self) -> None:
        if self._damage is not None:
            done = f"after {counted(self.counts.read, 'row')}: " if self.counts.read else ""
            raise CommandError(f"{done}{self._damage}")

    async def _find_start(self) -> Position | None:
        checkpoint = await self._usable_checkpoint()
        if checkpoint is None:
            self._rejects.open()
            return None
        self.counts = checkpoint.counts
        self._read_before = checkpoint.counts.read
        self._seconds_before = checkpoint.seconds
        self._sample_ids = checkpoint.witnesses
        self._position = checkpoint.position
        self._done = checkpoint.progress
        self._rejects.open(
            checkpoint.rejects_bytes, checkpoint.first_rejects, checkpoint.counts.rejected
        )
        ago = duration(max(0.0, time.time() - checkpoint.saved_at))
        complain(
            f"resuming after {counted(self.counts.read, 'message')} of a run that ended {ago} ago; "
            "--restart starts from the beginning"
        )
        return checkpoint.position

    async def _usable_checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint if the source, the rejects file and the server still match it."""
        if self._file is None or self._options.restart:
            return None
        again = "starting from the beginning, which stores nothing twice"
        try:
            checkpoint = self._file.load()
        except SourceChangedError:
            complain(f"{self._source.name} has changed since the interrupted run; {again}")
            return None
        if checkpoint is None:
            return None
        if not self._rejects.has(checkpoint.rejects_bytes):
            complain(f"{self._options.rejects} has changed since the interrupted run; {again}")
            return None
        if checkpoint.witnesses:
            found = await self._client.batch_get(checkpoint.witnesses)
            if found.missing_ids:
                complain(f"{self._settings.target} lacks messages of the interrupted run; {again}")
                return None
        return checkpoint

    async def _transfer(self, start: Position | None, meter: Meter) -> None:
        async with aclosing(read_ahead(self._source.rows(start))) as rows:
            exhausted = False
            while not exhausted:
                exhausted = await self._segment(rows, meter)

    async def _segment(self, rows: AsyncGenerator[Row, None], meter: Meter) -> bool:
        """Send rows until the source ends or too many are pending; return True at the end."""
        exhausted = False

        async def messages() -> AsyncGenerator[Message, None]:
            nonlocal exhausted
            while len(self._pending) < _MAX_PENDING:
                try:
                    row = await anext(rows, None)
                except CommandError as exc:
                    # Raised after the rows before the damage are stored.
                    self._damage, row = exc, None
                if row is None:
                    exhausted = True
                    return
                if row.message is None and not self._pending:
                    self._settle(row, row.problems)
                    self._report(meter)
                    continue
                self._pending.append(row)
                if row.message is not None:
                    yield row.message

        acks = self._client.bulk_save_stream(
            messages(),
            on_conflict=OnConflict[self._options.on_conflict.upper()],
            keep_created_at=True,
            batch_size=self._options.batch_size,
            timeout=self._settings.stream_timeout,
        )
        async with aclosing(acks):
            async for ack in acks:
                self._acknowledge(ack)
                self._report(meter)
        return exhausted

    def _acknowledge(self, ack: BulkAck) -> None:
        """Count the rows of a batch and the invalid rows between and after them."""
        self.counts.saved += ack.saved
        self.counts.unchanged += ack.unchanged
        self.counts.skipped += ack.skipped
        rejected = {r.position - ack.first_position: r for r in ack.rejected}
        position = 0
        stored: list[str] = []
        while self._pending and (position < ack.count or self._pending[0].message is None):
            row = self._pending.popleft()
            if row.message is None:
                self._settle(row, row.problems)
                continue
            reject = rejected.get(position)
            position += 1
            if reject is None:
                stored.append(row.message.id)
                self._settle(row, ())
            else:
                self._settle(row, (_problem_of(reject),))
        self._remember(stored)

    def _settle(self, row: Row, problems: tuple[Problem, ...]) -> None:
        self.counts.read += 1
        if problems:
            self.counts.rejected += 1
            self._rejects.add(row, problems)
        self._position, self._done = row.after, row.progress

    def _remember(self, stored: list[str]) -> None:
        """Keep the first and the latest ids, to check on resume that the server has them."""
        if stored:
            ends = [stored[0], stored[len(stored) // 2], stored[-1]]
            kept = [*self._sample_ids, *ends]
            self._sample_ids = [*kept[:1], *kept[1:][-_SAMPLE_IDS:]]

    def _report(self, meter: Meter) -> None:
        meter.update(self._done, self.counts.read)
        if time.monotonic() - self._last_checkpoint >= _CHECKPOINT_SECONDS:
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        self._last_checkpoint = time.monotonic()
        size = self._rejects.flush()
        if self._file is None or self._position is None:
            return
        checkpoint = Checkpoint(
            self._position,
            self._done,
            self.counts,
            self._seconds(),
            size,
            self._rejects.first,
            self._sample_ids,
        )
        try:
            self._file.save(checkpoint)
        except OSError as exc:
            # The import continues; it only cannot be resumed.
            complain(f"cannot write the checkpoint {self._file.path}: {exc.strerror}")
            self._file = None

    def _end(self, *, finished: bool) -> None:
        if finished:
            self._rejects.flush()
            if self._file is not None:
                self._file.remove()
        else:
            self._save_checkpoint()
        self._rejects.close()

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._begun

    def _with_resume_hint(self, why: str) -> str:
        if not self.counts.read:
            return why
        done = f"{why}; {counted(self.counts.read, 'message')} processed"
        if self._file is None:
            return f"{done}; importing the whole file again stores nothing twice"
        return f"{done}; run the same command again to resume"

    def summary(self) -> import_summary.Summary:
        """Return the summary of the import."""
        seconds = time.monotonic() - self._begun
        read = self.counts.read - self._read_before
        return import_summary.Summary(
            source=self._source.name,
            kind=self._source.kind,
            target=self._settings.target,
            **asdict(self.counts),
            left_behind=self._source.left_behind,
            resumed_after=self._read_before,
            seconds=self._seconds(),
            messages_per_second=read / seconds if seconds > 0 else 0.0,
            first_rejects=self._rejects.first,
            rejects_file=None if self._options.rejects is None else str(self._options.rejects),
            position=self._client.position,
        )
