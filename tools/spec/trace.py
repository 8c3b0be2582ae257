"""Checks whether a recorded trace is a behaviour of the specification.

    python -m tools.spec.trace FILE [FILE ...]

A trace is a file of JSON Lines, in the order of the events. The first line is ``{"event": "begin",
"rows": {ID: REVISION}, "revision": N}``; ``EVENTS`` lists the others. TLC explains each event by an
action of ``Migration.tla`` (see ``Trace.tla``). Exit status 1 if a trace is rejected; the first
event without an explanation is printed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.spec.instances import INVARIANTS, WITHOUT_READS, as_tla
from tools.spec.tlc import FailedError, MissingError, Verdict, check

Event = Mapping[str, Any]

EVENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    # Writes. `call` names one write of one message.
    "enter": ("write", ("call", "id", "delete")),  # it has passed the write fence
    "orphan": ("write", ("call",)),  # the caller has disconnected, the write stays in the queue
    "error": ("write", ("call",)),  # it ended with an error, or was never queued
    "unchanged": ("write", ("call", "id", "revision")),  # nothing to change at this revision
    "commit": ("write", ("call", "id", "revision", "delete")),  # durable in the source
    "target_write": ("write", ("call", "id", "revision", "delete")),  # the same in POSTGRES_ONLY
    "committed": ("write", ("revision",)),  # the new value of MigrationSource.committed
    "requeue": ("write", ("id", "revision")),  # a forced journal entry
    "ack": ("write", ("call", "revision", "both")),  # both: durable_on names both stores
    # Reads. `call` names one read of one message; row 0: there is none.
    "read": ("read", ("call", "id")),
    "snapshot": ("read", ("call", "from", "row")),  # from: source or target
    "answer": ("read", ("call", "row")),
    "read_error": ("read", ("call",)),
    # The source.
    "state": ("source", ("phase", "completing", "base", "rejournalled")),  # MigrationState on disk
    "prune": ("source", ("upto",)),
    "journal": ("source", ("after", "upto")),  # a batch that is not empty was read
    # Transactions of the target, at their commit. `session` numbers server processes.
    "claim": ("target", ("session",)),
    "set_phase": ("target", ("session", "phase", "applied")),
    "apply": ("target", ("session", "applied", "rows")),  # rows: id, row and tomb afterwards
    "copy": ("target", ("session", "before", "after", "rows")),  # marks, see `_mark`
    "renew": ("target", ("session", "applied")),
    "release": ("target", ("session",)),
    "finish": ("target", ("session",)),
    # The backfill reads a page.
    "page": ("page", ("ids", "before", "after")),
    # Knowledge of the server.
    "inspect": ("server", ("applied",)),
    "applied": ("server", ("applied",)),
    "mark": ("server", ("before", "after")),
    "standing": ("server", ("standing",)),
    "phase": ("server", ("phase",)),  # in force
    "gate": ("server", ("open",)),
    "contested": ("server", ()),  # LeaseGuard: another server may have the lease
    "proved": ("server", ()),
    "fenced": ("server", ()),
    # Processes and faults.
    "launch": ("world", ("session",)),
    "start": ("world", ("phase",)),
    "crash": ("world", ()),
    "down": ("world", ()),
    "up": ("world", ()),
    "set_back": ("world", ("row", "tomb", "phase", "session", "applied", "mark")),
    "take_over": ("world", ()),
    "rival_leaves": ("world", ()),
}
"""Kinds of event: the part of ``Trace.tla`` that explains it, and its fields."""

_OPTIONS = frozenset(
    {
        *("last step", "requeue", "attach in steps", "reattach"),
        "lost connections",
    }
)
"""Further actions of the specification."""

_TRANSLATED = {"before", "after", "ids", "row", "tomb", "mark"}
"""Fields that are translated, at least in some events."""

_EXPLAINED = re.compile(r'^<<"explained", (\d+)>>', re.MULTILINE)
_PARAMETER = re.compile(r"^[a-z_]+$")


class TraceError(Exception):
    """A trace is malformed; the message has the line number."""


class Result(NamedTuple):
    """Result of a check."""

    accepted: bool
    explained: int
    """Number of explained events, from the first."""
    events: int
    first_unexplained: Event | None
    violated: str
    """Invariant that the explained part violates."""
    states: int
    seconds: float


# ------------------------------------------------------------------ reading


def read(lines: Iterable[str]) -> list[Event]:
    """Parse JSON Lines, and check kinds and fields.

    Raises:
        TraceError: A line is malformed.
    """
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError as exc:
            raise TraceError(f"line {number} is not JSON: {exc}") from exc
        _check_event(number, event, first=not events)
        events.append(event)
    if not events:
        raise TraceError("the trace is empty")
    return events


def _check_event(number: int, event: Event, *, first: bool) -> None:
    kind = event.get("event")
    if first != (kind == "begin"):
        raise TraceError(f"line {number}: the first event, and no other, is begin; this is {kind}")
    wanted = ("rows", "revision") if first else EVENTS.get(str(kind), ("", None))[1]
    if wanted is None:
        raise TraceError(f"line {number}: unknown event {kind!r}")
    missing = [name for name in wanted if name not in event]
    if missing:
        raise TraceError(f"line {number}: {kind} lacks {', '.join(missing)}")


# ------------------------------------------------------------------ calls


class _Slots:
    """Gives each call a name that is reused after the call has ended.

    The specification has one record per client, so few names keep its state space small.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._names: dict[str, str] = {}
        self._free: list[str] = []
        self.all: list[str] = []

    def begin(self, call: str) -> str:
        if not self._free:
            self.all.append(f"{self._prefix}{len(self.all) + 1}")
            self._free.append(self.all[-1])
        self._names[call] = self._free.pop()
        return self._names[call]

    def of(self, call: str) -> str:
        if call not in self._names:
            raise TraceError(f"call {call} has not begun or has already ended")
        return self._names[call]

    def end(self, call: str) -> str:
        name = self.of(call)
        del self._names[call]
        self._free.append(name)
        return name

    def active(self) -> frozenset[str]:
        return frozenset(self._names.values())

    def end_all(self, but: set[str]) -> set[str]:
        """End all calls except some, and return those that continue."""
        for call in [name for name in self._names if name not in but]:
            self.end(call)
        return set(self._names)


_BEGIN = {"enter", "read"}
_END = {"ack", "error", "answer", "read_error"}


def _with_slots(events: Sequence[Event]) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Replace calls by slots; return the events and the slots of writers and readers."""
    slots = {"write": _Slots("w"), "read": _Slots("r")}
    orphans: set[str] = set()
    # In POSTGRES_ONLY a transaction may commit after its server has crashed.
    late = {str(event["call"]) for event in events if event["event"] == "target_write"}
    found = []
    for event in events:
        kind = str(event["event"])
        changed = dict(event)
        mine = slots.get(EVENTS[kind][0])
        if kind == "crash":
            for both in slots.values():
                orphans |= both.end_all(late)
            changed["late"] = slots["write"].active()
        elif mine is not None and "call" in event:
            call = str(event["call"])
            changed["call"] = _slot(mine, kind, call, orphans)
        found.append(changed)
    return found, slots["write"].all, slots["read"].all


def _slot(slots: _Slots, kind: str, call: str, orphans: set[str]) -> str:
    if kind in _BEGIN:
        return slots.begin(call)
    if kind == "orphan":
        orphans.add(call)
    elif kind in _END or (kind in {"commit", "target_write"} and call in orphans):
        orphans.discard(call)
        return slots.end(call)
    return slots.of(call)


# ------------------------------------------------------------------ writing TLA+


def _ids(events: Sequence[Event]) -> list[str]:
    found: set[str] = set(events[0]["rows"])
    for event in events[1:]:
        found.update([event["id"]] if "id" in event else [])
        if event["event"] in {"apply", "copy"}:
            found.update(row["id"] for row in event["rows"])
        if event["event"] == "set_back":
            found.update(event["row"], event["tomb"])
        found.update(event.get("ids", ()))
    return sorted(found) or ["none"]


def _mark(mark: Mapping[str, Any], ids: Sequence[str]) -> frozenset[str]:
    """Return the ids that a backfill mark covers.

    A mark is ``{"cursor": ID, "complete": BOOL}``; complete: the cursor has reached the end.
    """
    return frozenset(i for i in ids if mark["complete"] or i <= mark["cursor"])


def _function(values: Mapping[str, int], ids: Sequence[str]) -> str:
    pairs = " @@ ".join(f"{as_tla(i)} :> {values.get(i, 0)}" for i in ids)
    return f"({pairs})"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int | str):
        return as_tla(value)
    if isinstance(value, list):
        return "<<" + ", ".join(_value(item) for item in value) + ">>"
    if isinstance(value, dict):
        return _record({str(name): _value(item) for name, item in value.items()})
    raise TraceError(f"{value!r} has no TLA+ representation")


def _record(fields: Mapping[str, str]) -> str:
    bad = [name for name in fields if not _PARAMETER.match(name)]
    if bad:
        raise TraceError(f"{bad[0]!r} is not a valid field name")
    return "[" + ", ".join(f"{name} |-> {value}" for name, value in fields.items()) + "]"


def as_record(event: Event, ids: Sequence[str]) -> str:
    """Write an event as a record of TLA+."""
    kind = str(event["event"])
    about, names = EVENTS[kind]
    fields = {"kind": as_tla(kind), "about": as_tla(about)}
    plain = [name for name in names if name not in _TRANSLATED]
    fields |= {name: _value(event[name]) for name in plain}
    if "before" in names:
        before, after = (_mark(event[name], ids) for name in ("before", "after"))
        fields |= {"mark": as_tla(before), "covers": as_tla(after - before)}
    elif "after" in names:
        fields["after"] = _value(event["after"])
    if about == "read" and "row" in names:
        fields["row"] = _value(event["row"])
    if kind == "crash":
        fields["late"] = as_tla(event.get("late", frozenset()))
    if "ids" in names:
        fields["ids"] = as_tla(frozenset(event["ids"]))
    if kind == "set_back":
        mark = event["mark"]
        fields |= {name: _function(event[name], ids) for name in ("row", "tomb")}
        fields |= {"copied": as_tla(_mark(mark, ids)), "begun": _value(bool(mark["begun"]))}
    return _record(fields)


def module_of(events: Sequence[Event]) -> tuple[str, str]:
    """Return the module ``TraceCheck`` for a trace, and TLC's configuration."""
    ids = _ids(events)
    begin, (rest, writers, readers) = events[0], _with_slots(events[1:])
    records = ",\n  ".join(as_record(event, ids) for event in rest)
    module = (
        "---- MODULE TraceCheck ----\nEXTENDS Trace\n"
        f"TheOldRows == {_function(begin['rows'], ids)}\n"
        f"TheEvents == <<\n  {records}\n>>\n====\n"
    )
    return module, _configuration(ids, begin, writers, readers, rest)


def _configuration(
    ids: Sequence[str],
    begin: Event,
    writers: Sequence[str],
    readers: Sequence[str],
    events: Sequence[Event],
) -> str:
    bounds = ("Revision", "Crashes", "Cuts", "Moves", "SetBacks", "TakeOvers")
    constants = {
        "Ids": as_tla(frozenset(ids)),
        "OldIds": as_tla(frozenset(begin["rows"])),
        "Writers": as_tla(frozenset(writers)),
        "Readers": as_tla(frozenset(readers)),
        "StartPhase": "1",
        "FirstRevision": str(begin["revision"]),
        "Options": as_tla(_OPTIONS),
        "Mistakes": "{}",
    } | {f"Max{name}": "1000000000" for name in bounds}
    lines = ["SPECIFICATION TraceSpec", "CONSTANTS"]
    lines += [f"  {name} = {value}" for name, value in constants.items()]
    lines += ["  Events <- TheEvents", "  OldRows <- TheOldRows"]
    restored = any(event["event"] == "set_back" for event in events)
    names = [name for name in (WITHOUT_READS if restored else INVARIANTS) if name != "TypeOK"]
    lines.append("INVARIANTS " + " ".join([*names, "NotAtEnd"]))
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------ the verdict


def validate(events: Sequence[Event], timeout: float = 300.0) -> Result:
    """Check a trace; ``events`` are those that ``read`` returns.

    Raises:
        MissingError: Java or TLC is missing.
        FailedError: TLC could not check the trace.
        TraceError: The trace is malformed.
    """
    module, configuration = module_of(events)
    verdict = check(
        configuration, module="TraceCheck", modules={"TraceCheck": module}, timeout=timeout
    )
    return _result(events, verdict)


def _result(events: Sequence[Event], verdict: Verdict) -> Result:
    explained = max((int(number) for number in _EXPLAINED.findall(verdict.output)), default=0)
    accepted = verdict.violated == "NotAtEnd"
    rest = events[1:]
    return Result(
        accepted,
        len(rest) if accepted else explained,
        len(rest),
        None if accepted or explained >= len(rest) else rest[explained],
        "" if accepted else verdict.violated,
        verdict.distinct,
        verdict.seconds,
    )


def report(name: str, result: Result) -> str:
    """Return the line to print for a result."""
    if result.accepted:
        return f"{name}: accepted, {result.events:,} events, {result.seconds:.1f} s"
    if result.violated:
        return f"{name}: rejected: {result.violated} is violated after event {result.explained}"
    return (
        f"{name}: rejected: no behaviour explains event {result.explained + 1} of "
        f"{result.events:,}: {json.dumps(result.first_unexplained)}"
    )


def main(arguments: Sequence[str]) -> int:
    """Check the named files."""
    if not arguments:
        print(__doc__)
        return 2
    rejected = 0
    try:
        for name in arguments:
            with Path(name).open(encoding="utf-8") as lines:
                result = validate(read(lines))
            print(report(name, result), flush=True)
            rejected += not result.accepted
    except (FailedError, MissingError, TraceError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 1 if rejected else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
