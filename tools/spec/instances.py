"""Instances of the specification: constants, what must hold, and planted mistakes."""

from __future__ import annotations

from typing import NamedTuple

Constant = int | str | frozenset[str]

INVARIANTS = (
    "TypeOK",
    "NoLostAck",
    "ReadYourWrites",
    "Convergence",
    "AppliedIsTrue",
    "NoResurrection",
    "OneStore",
    "NoAckAfterFence",
    "LeaseHeld",
)

WITHOUT_READS = tuple(name for name in INVARIANTS if name != "ReadYourWrites")
"""For instances in which PostgreSQL is set back: reads are stale until the server detects it."""

_DEFAULTS: dict[str, Constant] = {
    "Ids": frozenset({"a"}),
    "OldIds": frozenset({"a"}),
    "Writers": frozenset({"w"}),
    "Readers": frozenset({"r"}),
    "StartPhase": 1,
    "MaxRevision": 2,
    "MaxCrashes": 0,
    "MaxCuts": 0,
    "MaxMoves": 0,
    "MaxSetBacks": 0,
    "MaxTakeOvers": 0,
    "Options": frozenset(),
    "Mistakes": frozenset(),
}


class Instance(NamedTuple):
    """Constants that TLC checks exhaustively."""

    name: str
    about: str
    constants: dict[str, Constant]
    invariants: tuple[str, ...] = INVARIANTS
    properties: tuple[str, ...] = ()
    """Liveness properties, checked under the fairness of ``FairSpec``."""
    expected: str = ""
    """Invariant or property that a planted mistake violates; empty: all must hold."""
    quick: bool = False
    """Whether ``--quick`` includes it."""

    @property
    def all_constants(self) -> dict[str, Constant]:
        """Constants, including the defaults."""
        return _DEFAULTS | self.constants


def configuration(instance: Instance) -> str:
    """Return TLC's configuration file."""
    lines = [f"SPECIFICATION {'FairSpec' if instance.properties else 'Spec'}", "CONSTANTS"]
    lines += [f"  {name} = {as_tla(value)}" for name, value in instance.all_constants.items()]
    if instance.invariants:
        lines.append("INVARIANTS " + " ".join(instance.invariants))
    if instance.properties:
        lines.append("PROPERTIES " + " ".join(instance.properties))
    return "\n".join(lines) + "\n"


def as_tla(value: Constant) -> str:
    """Return a value in TLA+ syntax."""
    if isinstance(value, frozenset):
        return "{" + ", ".join(as_tla(name) for name in sorted(value)) + "}"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def _names(text: str) -> frozenset[str]:
    return frozenset(name for name in text.split(", ") if name)


_TWO = {"Ids": frozenset({"a", "b"})}
_NO_READERS: dict[str, Constant] = {"Readers": frozenset()}
_READ: dict[str, Constant] = {"StartPhase": 4}
_LAST_STEP: dict[str, Constant] = {"Options": _names("last step")}
_SET_BACK: dict[str, Constant] = {"MaxSetBacks": 1, "Options": _names("attach in steps")}

HOLDING = (
    Instance(
        "phases",
        "all five phases and back; one crash, one cut",
        _NO_READERS | _LAST_STEP | {"MaxMoves": 4, "MaxCrashes": 1, "MaxCuts": 1},
    ),
    Instance(
        "phases-reads",
        "forward to READ_POSTGRES and on, with a reader; no fault",
        _LAST_STEP | {"MaxMoves": 4},
        quick=True,
    ),
    Instance(
        "two-messages",
        "two ids, one of them old; no fault",
        _TWO | _NO_READERS | {"MaxRevision": 3, "MaxMoves": 2},
    ),
    Instance(
        "reads",
        "READ_POSTGRES: a reader, two changes, one cut",
        {"StartPhase": 4, "MaxRevision": 3, "MaxCuts": 1, "MaxMoves": 1} | _LAST_STEP,
    ),
    Instance(
        "reads-crash",
        "READ_POSTGRES: a reader, one crash, one cut",
        {"StartPhase": 4, "MaxCrashes": 1, "MaxCuts": 1, "MaxMoves": 1} | _LAST_STEP,
    ),
    Instance(
        "lost-connections",
        "READ_POSTGRES: a reader; a connection is lost, the current step continues",
        _READ | {"MaxCuts": 1, "MaxMoves": 1, "Options": _names("last step, lost connections")},
    ),
    Instance(
        "two-readers",
        "READ_POSTGRES: two readers, one cut",
        {"StartPhase": 4, "MaxCuts": 1, "Readers": frozenset({"r", "s"})},
        quick=True,
    ),
    Instance(
        "attach-steps",
        "attaching step by step; one crash, one cut",
        _NO_READERS
        | {"MaxMoves": 2, "MaxCrashes": 1, "MaxCuts": 1, "Options": _names("attach in steps")},
    ),
    Instance(
        "requeue",
        "forced journal entries of a repair; no fault",
        _NO_READERS | {"MaxRevision": 3, "MaxMoves": 2, "Options": _names("requeue")},
    ),
    Instance(
        "second-server",
        "another server takes the lease; one crash, one cut",
        {"StartPhase": 4, "MaxCrashes": 1, "MaxCuts": 1, "MaxTakeOvers": 1, "MaxMoves": 1}
        | _NO_READERS
        | _LAST_STEP,
    ),
    Instance(
        "second-server-reads",
        "another server takes the lease; a reader",
        {"StartPhase": 4, "MaxCuts": 1, "MaxTakeOvers": 1},
        quick=True,
    ),
    Instance(
        "set-back-begin",
        "PostgreSQL is set back in DUAL_WRITE or BACKFILL; one cut",
        _NO_READERS | _SET_BACK | {"MaxMoves": 2, "MaxCuts": 1},
        WITHOUT_READS,
    ),
    Instance(
        "set-back-copy",
        "PostgreSQL is set back while two rows are copied",
        _NO_READERS
        | _SET_BACK
        | {"Ids": frozenset({"a", "b"}), "OldIds": frozenset({"a", "b"})}
        | {"MaxMoves": 2, "MaxRevision": 1, "MaxCuts": 1},
        WITHOUT_READS,
    ),
    Instance(
        "set-back-read",
        "PostgreSQL is set back in READ_POSTGRES or in the last step",
        _TWO
        | _NO_READERS
        | {"StartPhase": 4, "MaxRevision": 3, "MaxSetBacks": 1, "MaxMoves": 1}
        | {"Options": _names("attach in steps, last step")},
        WITHOUT_READS,
        quick=True,
    ),
    Instance(
        "drains",
        "liveness: the journal drains; one crash, one cut",
        _NO_READERS
        | {"StartPhase": 4, "MaxCrashes": 1, "MaxCuts": 1, "MaxMoves": 1}
        | {"Options": _names("attach in steps, last step")},
        (),
        ("Drains",),
    ),
    Instance(
        "notices",
        "liveness: a set-back of PostgreSQL is detected",
        _NO_READERS
        | _SET_BACK
        | {"Ids": frozenset({"a", "b"}), "OldIds": frozenset({"a", "b"})}
        | {"MaxMoves": 2, "MaxRevision": 1},
        (),
        ("NoticesSetBack",),
    ),
)
"""Instances that hold."""


def _mistake(
    name: str,
    expected: str,
    about: str,
    constants: dict[str, Constant],
    invariants: tuple[str, ...] = INVARIANTS,
    *,
    together_with: str = "",
) -> Instance:
    planted: dict[str, Constant] = {"Mistakes": frozenset({name, together_with} - {""})}
    liveness = expected not in INVARIANTS
    return Instance(
        name,
        about,
        constants | planted,
        () if liveness else invariants,
        (expected,) if liveness else (),
        expected,
        quick=True,
    )


_TWO_OLD: dict[str, Constant] = {"Ids": frozenset({"a", "b"}), "OldIds": frozenset({"a", "b"})}

PLANTED = (
    _mistake(
        "target-first",
        "OneStore",
        "PostgreSQL becomes the only store before the source records the start of the last step",
        _READ | _LAST_STEP | {"MaxMoves": 1, "MaxCrashes": 1},
    ),
    _mistake(
        "no-drain",
        "NoLostAck",
        "the phase changes before the journal is drained",
        _READ | _LAST_STEP | {"MaxMoves": 1},
    ),
    _mistake(
        "confirm-too-soon",
        "ReadYourWrites",
        "a write is acknowledged before PostgreSQL has it, while PostgreSQL answers reads",
        _READ,
    ),
    _mistake(
        "skip-tombstones",
        "AppliedIsTrue",
        "a deletion leaves no tombstone in PostgreSQL, so the backfill restores the row",
        {"MaxMoves": 2},
    ),
    _mistake(
        "empty-journal-says-all",
        "AppliedIsTrue",
        "a journal that was emptied by a step back counts as applied",
        {"MaxMoves": 2},
    ),
    _mistake(
        "stale-read-routed",
        "ReadYourWrites",
        "an answer of SQLite is sent after PostgreSQL has become current",
        {"MaxMoves": 3},
    ),
    _mistake(
        "stale-read-failed",
        "ReadYourWrites",
        "SQLite answers a read that PostgreSQL failed, at once",
        _READ | {"MaxCuts": 1},
    ),
    _mistake(
        "base-before-flush",
        "AppliedIsTrue",
        "`base` is taken before the write queue is flushed",
        {"OldIds": frozenset(), "MaxMoves": 1, "MaxCuts": 1},
        # Harmless on its own: missed entries are journalled again when the target is attached.
        together_with="new-skips-pruned",
    ),
    _mistake(
        "not-yet-is-never",
        "OneStore",
        "a cutover whose answer was lost counts as failed although it may still commit",
        _READ | _LAST_STEP | {"MaxMoves": 1, "MaxCuts": 1},
    ),
    _mistake(
        "ack-when-fenced",
        "NoAckAfterFence",
        "a fenced server acknowledges a write",
        _READ | {"MaxTakeOvers": 1},
    ),
    _mistake(
        "no-lease-check",
        "LeaseHeld",
        "a transaction commits without the lease",
        _READ | {"MaxTakeOvers": 1},
    ),
    _mistake(
        "no-compare",
        "AppliedIsTrue",
        "journal entries are applied to a PostgreSQL that was set back",
        _READ | _TWO | _NO_READERS | {"MaxRevision": 3, "MaxSetBacks": 1},
        WITHOUT_READS,
    ),
    _mistake(
        "copy-no-compare",
        "Convergence",
        "a backfill page follows a mark that PostgreSQL no longer has",
        _TWO_OLD | _NO_READERS | {"MaxMoves": 2, "MaxSetBacks": 1},
        WITHOUT_READS,
    ),
    _mistake(
        "finish-no-compare",
        "NoLostAck",
        "a PostgreSQL that was set back becomes the only store",
        _READ | _LAST_STEP | _NO_READERS | {"MaxMoves": 1, "MaxSetBacks": 1},
        WITHOUT_READS,
    ),
    _mistake(
        "attach-no-compare",
        "AppliedIsTrue",
        "PostgreSQL is set back while the server attaches, and the server continues",
        _READ | _NO_READERS | _SET_BACK | {"MaxCuts": 1},
        WITHOUT_READS,
    ),
    _mistake(
        "no-rejournal",
        "AppliedIsTrue",
        "entries that PostgreSQL lost are not journalled again",
        _READ | _TWO | _NO_READERS | {"MaxRevision": 3, "MaxSetBacks": 1},
        WITHOUT_READS,
    ),
    _mistake(
        "new-skips-pruned",
        "AppliedIsTrue",
        "a PostgreSQL that was set back to an empty state counts as having the pruned entries",
        {"MaxMoves": 1, "MaxSetBacks": 1} | _NO_READERS,
        WITHOUT_READS,
    ),
    _mistake(
        "renew-ignores-mark",
        "NoticesSetBack",
        "renew checks `applied` only, so a decreased backfill mark is not detected",
        _SET_BACK | _TWO_OLD | _NO_READERS | {"MaxMoves": 2, "MaxRevision": 1},
    ),
)
"""Instances with one planted mistake each; the named invariant must fail."""
