"""`sagastore migrate watch`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from sagastore import BackfillState, Migration, Phase
from sagastore.cli import migration_page, migration_record, records
from sagastore.cli.console import Row, screen
from sagastore.cli.failures import complain, terminated
from sagastore.cli.output import print_json
from sagastore.cli.settings import Settings
from sagastore.cli.times import show_time, utc_now

__all__ = ["Until", "watch"]

_SILENT_SECONDS = 4.0
"""The server tells at least every second."""
_LINE_SECONDS = 5.0
"""Between lines that tell of progress alone."""


@dataclass(frozen=True, slots=True)
class Until:
    """What to wait for: everything that is given."""

    phase: Phase | None = None
    """This phase, or a later one."""
    backfill_done: bool = False
    """All rows are copied, all indexes built."""
    ready: bool = False
    """Nothing stands between the phase and the next."""

    @property
    def given(self) -> bool:
        """True when there is something to wait for."""
        return self.phase is not None or self.backfill_done or self.ready

    def reached(self, state: Migration) -> bool:
        """Tell whether all of it holds."""
        if not self.given:
            return False
        copied = state.backfill.state is BackfillState.DONE or state.phase > Phase.BACKFILL
        return (
            (self.phase is None or state.phase >= self.phase)
            and (copied or not self.backfill_done)
            and not (self.ready and _to_wait_for(state))
        )


class _View(Protocol):
    """Shows what is watched."""

    def show(self, state: Migration) -> None:
        """Take in news."""

    def silent(self, seconds: float) -> None:
        """Take in that there has been no news for so long."""


async def watch(settings: Settings, until: Until) -> int:
    """Show where the migration stands until everything waited for holds, or for ever.

    Without anything to wait for, an interruption is the way to end it, and no
    failure.
    """
    try:
        with _view(settings) as view:
            await _follow(settings, view, until)
    except asyncio.CancelledError:
        if until.given or terminated():
            raise
    return 0


async def _follow(settings: Settings, view: _View, until: Until) -> None:
    heard = time.monotonic()

    async def mind_the_silence() -> None:
        while True:
            await asyncio.sleep(1)
            silence = time.monotonic() - heard
            if silence >= _SILENT_SECONDS:
                view.silent(silence)

    async with settings.client() as client:
        states = client.migration.watch(timeout=settings.stream_timeout)
        minding = asyncio.create_task(mind_the_silence())
        try:
            async with aclosing(states):
                async for state in states:
                    heard = time.monotonic()
                    view.show(state)
                    if until.reached(state):
                        return
        finally:
            minding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await minding


@contextlib.contextmanager
def _view(settings: Settings) -> Iterator[_View]:
    """Yield what fits standard output: a program, a terminal, or a file."""
    if settings.as_json:
        yield _JsonLines()
    elif sys.stdout.isatty():
        with _live() as update:
            yield _Live(settings.target, update)
    else:
        yield _Lines()


class _Silence:
    """Says once that there is no news, and once that there is again."""

    def __init__(self) -> None:
        self._said = False

    def news(self) -> None:
        if self._said:
            self._said = False
            complain("the server is there again")

    def silent(self, seconds: float) -> None:
        if not self._said:
            self._said = True
            complain(f"no news from the server for {seconds:.0f} s; still trying")


class _JsonLines:
    """All that the server tells, a document a line."""

    def __init__(self) -> None:
        self._silence = _Silence()

    def show(self, state: Migration) -> None:
        self._silence.news()
        print_json(records.document(migration_record.facts(state)))
        sys.stdout.buffer.flush()

    def silent(self, seconds: float) -> None:
        self._silence.silent(seconds)


class _Lines:
    """A line for each change, and for mere progress now and then."""

    def __init__(self) -> None:
        self._silence = _Silence()
        self._out = screen()
        self._shown: tuple[object, ...] = ()
        self._text = ""
        self._at = 0.0

    def show(self, state: Migration) -> None:
        self._silence.news()
        text = "; ".join(_summary(state))
        changed = _essence(state) != self._shown
        now = time.monotonic()
        if not changed and (text == self._text or now - self._at < _LINE_SECONDS):
            return
        self._shown, self._text, self._at = _essence(state), text, now
        self._out.page([Row("", (f"{show_time(utc_now())}  {text}",))])
        sys.stdout.flush()

    def silent(self, seconds: float) -> None:
        self._silence.silent(seconds)


def _essence(state: Migration) -> tuple[object, ...]:
    """Return what people must hear of at once."""
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
        yield "READS COME FROM THE FALLBACK, SQLITE"
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
        yield f"verifying {now.compared:,} of {now.total:,}, {now.mismatch_count:,} mismatches"
    if state.journal_rows:
        yield f"journal {state.journal_rows:,} rows"
    following = migration_page.phase_after(state.phase)
    if following is not None:
        reasons = ", ".join(blocker.reason for blocker in state.blockers_to_next)
        way = f"to {following.label}"
        yield f"in the way {way}: {reasons}" if reasons else f"nothing in the way {way}"


class _Live:
    """A page that is written over again and again."""

    def __init__(self, target: str, update: Callable[[list[Row]], None]) -> None:
        self._target = target
        self._update = update
        self._page: list[Row] = []

    def show(self, state: Migration) -> None:
        self._page = migration_page.page(state, self._target)
        self._update(self._page)

    def silent(self, seconds: float) -> None:
        if self._page:
            alarm = f"no news from the server for {seconds:.0f} s; still trying"
            self._update([*self._page, Row("", ((alarm, "bold red"),))])


@contextlib.contextmanager
def _live() -> Iterator[Callable[[list[Row]], None]]:
    """Yield what shows a page in place of the one before; the last one stays."""
    # Slow to import, and needed on a terminal only.
    from rich.live import Live

    from sagastore.cli.console import layout, terminal_console

    console = terminal_console()
    with Live(console=console, auto_refresh=False, redirect_stderr=False) as live:
        yield lambda rows: live.update(layout(console, rows), refresh=True)


def _to_wait_for(state: Migration) -> bool:
    """Tell whether waiting could help: that the quarantine is accepted is for the operator."""
    return any(one.reason != "QUARANTINE_NOT_ACCEPTED" for one in state.blockers_to_next)
