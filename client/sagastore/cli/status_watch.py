"""The `migrate watch` command."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from sagastore import BackfillPace, BackfillState, Migration, Phase
from sagastore.cli import migration_page, migration_record, records
from sagastore.cli.console import Row, screen
from sagastore.cli.failures import complain, terminated
from sagastore.cli.output import print_json
from sagastore.cli.settings import Settings
from sagastore.cli.times import show_time, utc_now
from sagastore.commandline.text import counted

__all__ = ["Until", "watch"]

_STALE_SECONDS = 1.5
"""Seconds without an update after which a page on a terminal is marked as stale, so that people
know within 2 s. The server sends an update every half second."""
_SILENT_SECONDS = 4.0
"""The same for lines, which stay in a log: a server that is slow once is no news."""
_CHECK_SECONDS = 0.1
"""Seconds between two checks for silence."""
_LINE_SECONDS = 5.0
"""Seconds between lines that show only progress."""
_PACE_SECONDS = 1.0
"""Seconds between lines that show only what limits the pace, which may change with each batch."""


@dataclass(frozen=True, slots=True)
class Until:
    """The conditions to wait for; all must hold."""

    phase: Phase | None = None
    """This phase or a later one is reached."""
    backfill_done: bool = False
    """All rows are copied and all indexes are built."""
    ready: bool = False
    """Nothing blocks the next phase, except quarantined rows."""

    @property
    def given(self) -> bool:
        """True if there is a condition."""
        return self.phase is not None or self.backfill_done or self.ready

    def reached(self, state: Migration) -> bool:
        """Report whether all conditions hold; False if there are none."""
        if not self.given:
            return False
        copied = state.backfill.state is BackfillState.DONE or state.phase > Phase.BACKFILL
        return (
            (self.phase is None or state.phase >= self.phase)
            and (copied or not self.backfill_done)
            and not (self.ready and _has_transient_blockers(state))
        )


class _View(Protocol):
    """Displays the state of the migration."""

    patience: float
    """Seconds without an update before `silent` is called."""

    def show(self, state: Migration) -> None:
        """Display a state."""

    def silent(self, seconds: float) -> None:
        """Display that there was no update for some seconds."""


async def watch(settings: Settings, until: Until) -> int:
    """Show the state of the migration until all conditions hold.

    Without conditions, an interruption ends the command successfully.
    """
    try:
        with _view(settings) as view:
            await _follow(settings, view, until)
    except asyncio.CancelledError:
        if until.given or terminated():
            raise
    return 0


async def _follow(settings: Settings, view: _View, until: Until) -> None:
    last_update = time.monotonic()

    async def report_silence() -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            silence = time.monotonic() - last_update
            if silence >= view.patience:
                view.silent(silence)

    async with settings.client() as client:
        states = client.migration.watch(timeout=settings.stream_timeout)
        reporting = asyncio.create_task(report_silence())
        try:
            async with aclosing(states):
                async for state in states:
                    last_update = time.monotonic()
                    view.show(state)
                    if until.reached(state):
                        return
        finally:
            reporting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reporting


@contextlib.contextmanager
def _view(settings: Settings) -> Iterator[_View]:
    """Yield the view for the output: JSON, a terminal, or plain lines."""
    if settings.as_json:
        yield _JsonLines()
    elif sys.stdout.isatty():
        with _live() as update:
            yield _Live(settings, update)
    else:
        yield _Lines()


class _Silence:
    """Reports the start and the end of a period without updates once each."""

    def __init__(self) -> None:
        self._reported = False

    def end(self) -> None:
        if self._reported:
            self._reported = False
            complain("the server responds again")

    def silent(self, seconds: float) -> None:
        if not self._reported:
            self._reported = True
            complain(f"no update from the server for {seconds:.0f} s; still trying")


class _JsonLines:
    """Prints each update as a JSON line."""

    patience = _SILENT_SECONDS

    def __init__(self) -> None:
        self._silence = _Silence()

    def show(self, state: Migration) -> None:
        self._silence.end()
        print_json(records.document(migration_record.facts(state)))
        sys.stdout.buffer.flush()

    def silent(self, seconds: float) -> None:
        self._silence.silent(seconds)


class _Lines:
    """Prints a line for each change, and for progress periodically."""

    patience = _SILENT_SECONDS

    def __init__(self) -> None:
        self._silence = _Silence()
        self._out = screen()
        self._shown: tuple[object, ...] = ()
        self._text = ""
        self._at = 0.0
        self._pace = BackfillPace.UNKNOWN

    def show(self, state: Migration) -> None:
        self._silence.end()
        text = "; ".join(_summary(state))
        changed = _important_values(state) != self._shown
        now = time.monotonic()
        paced = state.backfill.pace is not self._pace and now - self._at >= _PACE_SECONDS
        if not (changed or paced) and (text == self._text or now - self._at < _LINE_SECONDS):
            return
        self._pace = state.backfill.pace
        self._shown, self._text, self._at = _important_values(state), text, now
        self._out.page([Row("", (f"{show_time(utc_now())}  {text}",))])
        sys.stdout.flush()

    def silent(self, seconds: float) -> None:
        self._silence.silent(seconds)


def _important_values(state: Migration) -> tuple[object, ...]:
    """Return the values whose changes are printed immediately."""
    return (
        state.phase,
        state.epoch,
        state.backfill.state,
        state.backfill.error,
        state.reads_from_fallback,
        state.quarantined,
        state.last_verification,
        state.verifying is None,
        state.shadow.different,
        tuple(blocker.reason for blocker in state.blockers_to_next),
        tuple((store.store, store.healthy) for store in state.stores),
    )


def _summary(state: Migration) -> Iterator[str]:
    yield f"{state.phase.label}, epoch {state.epoch}"
    if state.reads_from_fallback:
        yield "READS ARE SERVED BY THE FALLBACK, SQLITE"
    for store in state.stores:
        if not store.healthy:
            yield f"{store.store.label}: {store.detail or 'not healthy'}"
    if state.phase is Phase.BACKFILL:
        backfill = state.backfill
        yield ", ".join(
            filter(
                None,
                (
                    f"backfill {backfill.state.label}: {migration_page.copied(backfill)}",
                    *migration_page.pace(backfill),
                    backfill.error,
                ),
            )
        )
    if state.verifying is not None:
        now = state.verifying
        mismatches = counted(now.mismatch_count, "mismatch", "mismatches")
        yield f"verifying {now.compared:,} of {now.total:,}, {mismatches}"
    if state.journal_rows:
        yield f"journal {counted(state.journal_rows, 'row')}"
    following = migration_page.phase_after(state.phase)
    if following is not None:
        reasons = ", ".join(blocker.reason for blocker in state.blockers_to_next)
        way = f"to {following.label}"
        yield f"blockers {way}: {reasons}" if reasons else f"no blockers {way}"


class _Live:
    """Displays a page that is updated in place."""

    patience = _STALE_SECONDS

    def __init__(self, settings: Settings, update: Callable[[list[Row]], None]) -> None:
        self._settings = settings
        self._update = update
        self._page: list[Row] = []
        self._said = 0
        """Seconds of silence that the page shows."""

    def show(self, state: Migration) -> None:
        self._said = 0
        self._page = migration_page.page(state, self._settings)
        self._update(self._page)

    def silent(self, seconds: float) -> None:
        if int(seconds) == self._said:
            return  # The page changes once a second.
        self._said = int(seconds)
        alarm = f"STALE: no update from the server for {self._said} s; still trying"
        # At the top: a terminal that is too small for the page shows its beginning.
        self._update([Row("", ((alarm, "bold red"),)), Row("", ()), *self._page])


@contextlib.contextmanager
def _live() -> Iterator[Callable[[list[Row]], None]]:
    """Yield a function that replaces the displayed page; the last page remains."""
    # Slow to import, and needed only on a terminal.
    from rich.live import Live

    from sagastore.cli.console import layout, terminal_console

    console = terminal_console()
    with Live(console=console, auto_refresh=False, redirect_stderr=False) as live:
        yield lambda rows: live.update(layout(console, rows), refresh=True)


def _has_transient_blockers(state: Migration) -> bool:
    """Report whether a blocker may disappear; accepting the quarantine needs an operator."""
    return any(one.reason != "QUARANTINE_NOT_ACCEPTED" for one in state.blockers_to_next)
