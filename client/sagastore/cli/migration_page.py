"""The status page of a migration."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sagastore import (
    Backfill,
    BackfillState,
    Migration,
    Phase,
    ShadowDifference,
    Store,
    StoreHealth,
)
from sagastore.cli.console import Part, Row
from sagastore.cli.next_step import next_step
from sagastore.cli.progress import duration, rate_of
from sagastore.cli.settings import DEFAULT_TARGET
from sagastore.cli.times import show_time

__all__ = [
    "PHASES",
    "copied",
    "health",
    "pace",
    "page",
    "phase_after",
    "program",
    "reads",
    "store_name",
]

PHASES = tuple(phase for phase in Phase if phase is not Phase.UNKNOWN)
_TWO_STORES = frozenset({Phase.DUAL_WRITE, Phase.BACKFILL, Phase.READ_POSTGRES})
_COPIED = frozenset({Phase.BACKFILL, Phase.READ_POSTGRES})

_HANG = 14
_BAR = 20
_LATE_SECONDS = 10.0
_DIFFERENCES = 3

_NAMES = {Store.SQLITE: "SQLite", Store.POSTGRESQL: "PostgreSQL", Store.UNKNOWN: "unknown"}
_BACKFILL_STYLES = {
    BackfillState.RUNNING: "bold",
    BackfillState.PAUSED: "yellow",
    BackfillState.FAILED: "red",
}


def page(state: Migration, target: str) -> list[Row]:
    """Return the page.

    Args:
        state: The state of the migration.
        target: The server, for the next command.
    """
    return [
        Row("", _steps(state.phase)),
        Row("", ()),
        *(_field(name, *parts) for name, parts in _fields(state)),
        Row("", ()),
        *_what_next(state, target),
    ]


def program(target: str) -> str:
    """Return the command with its --target option, so that it can be copied."""
    default = os.environ.get("SAGASTORE_TARGET") or DEFAULT_TARGET
    return "sagastore" if target == default else f"sagastore --target {target}"


def store_name(store: Store) -> str:
    """Return the display name of a store."""
    return _NAMES[store]


def phase_after(phase: Phase) -> Phase | None:
    """Return the next phase; None if `phase` is the last one or unknown."""
    return None if phase in {Phase.UNKNOWN, Phase.POSTGRES_ONLY} else Phase(phase + 1)


def _field(name: str, *parts: Part) -> Row:
    return Row(name, parts, _HANG)


def _steps(phase: Phase) -> tuple[Part, ...]:
    """Return all phases in a line; the current one is in brackets."""
    if phase is Phase.UNKNOWN:
        return (("unknown phase; update sagastore", "red"),)
    parts: list[Part] = []
    for step in PHASES:
        if parts:
            parts.append((" > ", "dim"))
        if step is phase:
            parts.append((f"[{step.label}]", "bold reverse"))
        else:
            parts.append((step.label, "green" if step < phase else "dim"))
    return tuple(parts)


def _fields(state: Migration) -> Iterator[tuple[str, tuple[Part, ...]]]:
    yield "epoch", (f"{state.epoch}",)
    yield "reads", (reads(state),)
    for store in state.stores:
        yield store.store.label, health(store)
    if state.phase in _COPIED or state.backfill.state is not BackfillState.PENDING:
        yield from _backfill(state.backfill)
    if state.phase in _TWO_STORES or state.journal_rows:
        yield "journal", _journal(state)
    if state.verifying is not None:
        now = state.verifying
        mismatches: Part = (f", {_mismatches(now.mismatch_count)}", _bad(now.mismatch_count))
        bar = f"{_bar(now.compared, now.total)}{now.compared:,} of {now.total:,} rows"
        yield "verifying", (bar, mismatches)
    if state.phase in _COPIED or state.last_verification is not None:
        yield "verification", _verification(state)
    if state.shadow.compared or state.shadow.skipped:
        yield "shadow reads", _shadow(state)
        for found in state.shadow.differences[:_DIFFERENCES]:
            yield "", _difference(found)
    held = "row" if state.quarantined == 1 else "rows"
    yield "quarantine", ((f"{state.quarantined:,} {held}", "yellow" if state.quarantined else ""),)


def reads(state: Migration) -> Part:
    """Return the store that serves reads; the fallback is highlighted."""
    if state.reads_from_fallback:
        return "from the fallback, SQLite: PostgreSQL is down or behind", "bold red"
    return f"from {_NAMES[state.reads_from]}"


def health(store: StoreHealth) -> tuple[Part, ...]:
    """Return the health of a store, its number of messages and the version of its schema."""
    state: Part = ("healthy", "green")
    if not store.healthy:
        state = (store.detail or "not healthy", "red")
    held = "" if store.messages is None else f", {store.messages:,} messages"
    version = "" if store.schema_version is None else f", schema {store.schema_version}"
    return state, held, (version, "dim")


def _backfill(backfill: Backfill) -> Iterator[tuple[str, tuple[Part, ...]]]:
    if backfill.state is BackfillState.DONE:
        yield "backfill", (("done", "green"), f", {backfill.copied:,} rows")
        return
    yield "backfill", (_bar(backfill.copied, backfill.total), copied(backfill))
    state: Part = (backfill.state.label, _BACKFILL_STYLES.get(backfill.state, ""))
    yield "", (state, "".join(f", {text}" for text in pace(backfill)))
    if backfill.error:
        yield "", ((backfill.error, "red"),)


def copied(backfill: Backfill) -> str:
    """Return the number of copied rows."""
    return f"{backfill.copied:,} of {backfill.total:,} rows"


def pace(backfill: Backfill) -> Iterator[str]:
    """Yield the step, the rate and the time left of a backfill, if known."""
    if backfill.step:
        yield backfill.step
    if backfill.rows_per_second > 0:
        yield rate_of(backfill.rows_per_second, 1, "rows")
    if backfill.eta_seconds > 0:
        yield f"{duration(backfill.eta_seconds)} left"


def _bar(done: int, total: int) -> str:
    if total <= 0:
        return ""
    # Rounded down: 100 % means that nothing is left.
    part = min(max(done / total, 0.0), 1.0)
    filled = int(part * _BAR)
    return f"[{'#' * filled}{'-' * (_BAR - filled)}] {int(part * 100):3} %  "


def _journal(state: Migration) -> tuple[Part, ...]:
    if not state.journal_rows:
        return (("PostgreSQL has every write", "green"),)
    late = "yellow" if state.journal_lag_seconds > _LATE_SECONDS else ""
    age = f"{duration(state.journal_lag_seconds)} old"
    return f"{state.journal_rows:,} writes wait for PostgreSQL, the first ", (age, late)


def _verification(state: Migration) -> tuple[Part, ...]:
    last = state.last_verification
    if last is None:
        return ("not done yet",)
    when = f"{show_time(last.finished_at)} UTC, {last.compared:,} rows compared, "
    found: Part = (_mismatches(last.mismatch_count), _bad(last.mismatch_count) or "green")
    repaired = f", {last.repaired:,} queued for repair" if last.repaired else ""
    return when, found, repaired


def _mismatches(count: int) -> str:
    if not count:
        return "no mismatch"
    return f"{count:,} mismatches" if count > 1 else "1 mismatch"


def _bad(count: int) -> str:
    return "bold red" if count else ""


def _shadow(state: Migration) -> tuple[Part, ...]:
    shadow = state.shadow
    different = f"{shadow.different:,} answered differently"
    skipped = f", {shadow.skipped:,} not compared" if shadow.skipped else ""
    return f"{shadow.compared:,} compared, ", (different, _bad(shadow.different)), skipped


def _difference(found: ShadowDifference) -> tuple[Part, ...]:
    when = f"{show_time(found.time)} UTC "
    answers = f": SQLite {found.sqlite or 'nothing'}, PostgreSQL {found.postgresql or 'nothing'}"
    return (when, "dim"), found.read, answers


def _what_next(state: Migration, target: str) -> Iterator[Row]:
    following = phase_after(state.phase)
    if state.blockers_to_next:
        way = f"to {following.label}" if following else "to the next phase"
        yield Row("", (f"Blockers {way}:",))
        for blocker in state.blockers_to_next:
            yield Row("  - ", ((blocker.reason, "yellow"), f": {blocker.detail}"), 4)
        yield Row("", ())
    step = next_step(state)
    if step.command:
        yield _field("next", (f"{program(target)} migrate {step.command}", "bold"), step.remark)
    else:
        yield _field("next", step.remark)
