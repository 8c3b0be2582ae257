"""The status page of a migration."""

from __future__ import annotations

from collections.abc import Iterator

from sagastore import (
    Backfill,
    BackfillPace,
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
from sagastore.cli.settings import Settings
from sagastore.cli.times import show_time
from sagastore.commandline.text import counted

__all__ = [
    "PHASES",
    "copied",
    "health",
    "pace",
    "page",
    "phase_after",
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
_PACES = {
    BackfillPace.FULL: "at full speed",
    BackfillPace.OPERATOR: "throttled by the operator",
    BackfillPace.LATENCY: "throttled because writes became slower",
    BackfillPace.LOAD: "throttled because clients write",
}
_BACKFILL_STYLES = {
    BackfillState.RUNNING: "bold",
    BackfillState.PAUSED: "yellow",
    BackfillState.FAILED: "red",
}


def page(state: Migration, settings: Settings) -> list[Row]:
    """Return the page.

    Args:
        state: The state of the migration.
        settings: The options to repeat in the next command.
    """
    return [
        Row("", _steps(state.phase)),
        Row("", ()),
        *(_field(name, *parts) for name, parts in _fields(state)),
        Row("", ()),
        *_what_next(state, settings),
    ]


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
    if (moment := _moment(state)) is not None:
        yield "counted", (f"at revision {moment:,} in both stores",)
    if state.phase in _COPIED or state.backfill.state is not BackfillState.PENDING:
        yield from _backfill(state.backfill)
    if state.phase in _TWO_STORES or state.journal_rows:
        yield "journal", _journal(state)
    if state.verifying is not None:
        now = state.verifying
        mismatches: Part = (f", {_mismatches(now.mismatch_count)}", _bad(now.mismatch_count))
        bar = f"{_bar(now.compared, now.total)}{now.compared:,} of {counted(now.total, 'row')}"
        yield "verifying", (bar, mismatches)
    if state.phase in _COPIED or state.last_verification is not None:
        yield "verification", _verification(state)
    if state.shadow.compared or state.shadow.skipped:
        yield "shadow reads", _shadow(state)
        for found in state.shadow.differences[:_DIFFERENCES]:
            yield "", _difference(found)
    held = counted(state.quarantined, "row")
    yield "quarantine", ((held, "yellow" if state.quarantined else ""),)


def reads(state: Migration) -> Part:
    """Return the store that serves reads; the fallback is highlighted."""
    if state.reads_from_fallback:
        return "from the fallback, SQLite: PostgreSQL is down or behind", "bold red"
    return f"from {_NAMES[state.reads_from]}"


def _moment(state: Migration) -> int | None:
    """Return the revision at which both stores were counted; None if there is none."""
    revisions = {store.revision for store in state.stores}
    return revisions.pop() if len(state.stores) == 2 and len(revisions) == 1 else None


def health(store: StoreHealth) -> tuple[Part, ...]:
    """Return the health of a store, its numbers of records and the version of its schema."""
    state: Part = ("healthy", "green")
    if not store.healthy:
        state = (store.detail or "not healthy", "red")
    held = "".join(
        f", {counted(count, noun)}"
        for count, noun in (
            (store.messages, "message"),
            (store.sessions, "session"),
            (store.files, "file"),
        )
        if count is not None
    )
    version = "" if store.schema_version is None else f", schema {store.schema_version}"
    return state, held, (version, "dim")


def _backfill(backfill: Backfill) -> Iterator[tuple[str, tuple[Part, ...]]]:
    if backfill.state is BackfillState.DONE:
        yield "backfill", (("done", "green"), f", {counted(backfill.copied, 'row')}")
        return
    yield "backfill", (_bar(backfill.copied, backfill.total), copied(backfill))
    state: Part = (backfill.state.label, _BACKFILL_STYLES.get(backfill.state, ""))
    yield "", (state, "".join(f", {text}" for text in pace(backfill)))
    if backfill.error:
        yield "", ((backfill.error, "red"),)


def copied(backfill: Backfill) -> str:
    """Return the number of copied rows."""
    return f"{backfill.copied:,} of {counted(backfill.total, 'row')}"


def pace(backfill: Backfill) -> Iterator[str]:
    """Yield the step, the rate, the time left and what limits the rate, if known."""
    if backfill.step:
        yield backfill.step
    if backfill.rows_per_second > 0:
        yield rate_of(backfill.rows_per_second, 1, "rows")
    if backfill.eta_seconds > 0:
        yield f"{duration(backfill.eta_seconds)} left"
    if backfill.pace in _PACES:
        detail = f" ({backfill.pace_detail})" if backfill.pace_detail else ""
        yield f"{_PACES[backfill.pace]}{detail}"


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
    wait = "waits" if state.journal_rows == 1 else "wait"
    return f"{counted(state.journal_rows, 'write')} {wait} for PostgreSQL, the first ", (age, late)


def _verification(state: Migration) -> tuple[Part, ...]:
    last = state.last_verification
    if last is None:
        return ("not done yet",)
    when = f"{show_time(last.finished_at)} UTC, {counted(last.compared, 'row')} compared, "
    found: Part = (_mismatches(last.mismatch_count), _bad(last.mismatch_count) or "green")
    repaired = f", {last.repaired:,} queued for repair" if last.repaired else ""
    return when, found, repaired


def _mismatches(count: int) -> str:
    return counted(count, "mismatch", "mismatches") if count else "no mismatch"


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


def _what_next(state: Migration, settings: Settings) -> Iterator[Row]:
    following = phase_after(state.phase)
    if state.blockers_to_next:
        way = f"to {following.label}" if following else "to the next phase"
        yield Row("", (f"Blockers {way}:",))
        for blocker in state.blockers_to_next:
            yield Row("  - ", ((blocker.reason, "yellow"), f": {blocker.detail}"), 4)
        yield Row("", ())
    step = next_step(state)
    if not step.command:
        yield _field("next", step.remark)
        return
    yield _command("next", settings, step.command)
    if step.remark:
        # Not after the command, which can be pasted as a line.
        yield _field("", step.remark)
    if step.then:
        yield _command("then", settings, step.then)


def _command(name: str, settings: Settings, arguments: str) -> Row:
    return Row(name, (), _HANG, settings.command("migrate", *arguments.split()))
