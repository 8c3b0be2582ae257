"""Checks ``durable_on`` against the phase, the request, and the contents of the stores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

from tools.chaos.history import History, Operation, Outcome
from tools.chaos.values import Shown
from tools.chaos.violations import Kind, Violation, violation

_BOTH = frozenset({"SQLITE", "POSTGRESQL"})
STORES: Mapping[str, frozenset[str]] = {
    "sqlite-only": frozenset({"SQLITE"}),
    "dual-write": _BOTH,
    "backfill": _BOTH,
    "read-postgres": _BOTH,
    "postgres-only": frozenset({"POSTGRESQL"}),
}
"""Possible ``durable_on`` of a write, by the label of the phase."""


def false_claims(history: History) -> Iterator[Violation]:
    """Find saves whose ``durable_on`` cannot be true.

    The phase of a save follows from marks of the kind ``phase`` (``phase`` is the label of the
    current phase) and ``phase-change`` (``to``: a change has begun). Without marks, any phase is
    possible.
    """
    phases = _Phases(history)
    acknowledged: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        if operation.kind == "Save" and operation.outcome is Outcome.OK:
            acknowledged[operation.args["value"]["id"]].append(operation)
            what = _contradiction(operation, phases.during(operation))
            if what:
                id = operation.args["value"]["id"]
                yield violation(history, Kind.DURABLE_ON_LIE, id, what, [operation])
    deletes: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        if operation.kind == "Delete" and _may_have_taken_effect(operation):
            deletes[operation.args["id"]].append(operation)
    set_backs = _SetBacks(history)
    for operation in history:
        if operation.kind == "Peek" and operation.outcome is Outcome.OK:
            since = set_backs.before(operation)
            if since is not None:
                yield from _missing_writes(history, operation, acknowledged, deletes, since)


def _contradiction(operation: Operation, possible: frozenset[str]) -> str:
    said = frozenset(operation.answer.get("durable_on", ()))
    if not said:
        return "the save was acknowledged, but durable_on is empty"
    fitting = [phase for phase in possible if said <= STORES[phase]]
    if not fitting:
        return f"{'+'.join(sorted(said))} is impossible in phase {' or '.join(sorted(possible))}"
    if all("SQLITE" in STORES[phase] and "SQLITE" not in said for phase in fitting):
        return f"durable_on must contain SQLite in phase {' or '.join(sorted(fitting))}"
    complete = any(said == STORES[phase] for phase in fitting)
    if operation.args.get("durability") == "BOTH" and not complete:
        return "the request asked for every store, but durable_on does not contain all of them"
    return ""


def _missing_writes(
    history: History,
    inspect_store: Operation,
    acknowledged: Mapping[str, list[Operation]],
    deletes: Mapping[str, list[Operation]],
    since: int,
) -> Iterator[Violation]:
    """Compare the contents of one store with the saves that were reported durable on it.

    Saves that began before ``since`` are ignored.
    """
    there = {item[0]: Shown(*item) for item in inspect_store.answer["items"]}
    store = inspect_store.args["store"]
    for id, saves in acknowledged.items():
        due = [
            save
            for save in saves
            if store in save.answer.get("durable_on", ())
            and save.end is not None
            and save.end < inspect_store.start
            and save.start >= since
        ]
        if not due:
            continue
        latest = max(due, key=lambda save: save.answer["revision"])
        row = there.get(id)
        if row is None:
            kept = any(_may_follow(one, latest) for one in deletes.get(id, ()))
        else:
            kept = row.revision >= latest.answer["revision"]
        if not kept:
            has = "nothing" if row is None else f"revision {row.revision}"
            what = f"{store} should have revision {latest.answer['revision']}, but has {has}"
            # Of all that the store has, what matters here.
            seen = replace(inspect_store, answer={"items": [] if row is None else [row]})
            yield violation(history, Kind.DURABLE_ON_LIE, id, what, [latest, seen])


def _may_have_taken_effect(delete: Operation) -> bool:
    # With retries in the client library, the refusal is that of the last attempt only.
    return delete.outcome is not Outcome.REFUSED or delete.args.get("tries", 1) > 1


def _may_follow(delete: Operation, save: Operation) -> bool:
    """Return whether a deletion may have taken effect after a save."""
    once = delete.outcome is Outcome.OK and delete.args.get("tries", 1) == 1
    return not once or delete.end is None or delete.end > save.start


class _SetBacks:
    """Intervals in which PostgreSQL was set back, from marks of the kind ``set back``.

    Each interval has two marks, the second one with ``ends``. Rows that were durable in
    PostgreSQL before are applied again within seconds; no claim is checked meanwhile.
    """

    def __init__(self, history: History) -> None:
        self._marks = [(one.at, one.facts["ends"]) for one in history.marks
                       if one.kind == "set back"]  # fmt: skip

    def before(self, inspect_store: Operation) -> int | None:
        """Return the time from which saves are durable in the inspected store.

        None: PostgreSQL was being set back, so no claim can be checked.
        """
        if inspect_store.args["store"] != "POSTGRESQL":
            return 0
        ended = inspect_store.start if inspect_store.end is None else inspect_store.end
        earlier = [(at, ends) for at, ends in self._marks if at <= ended]
        if not earlier:
            return 0
        under_way = sum(-1 if ends else 1 for _, ends in earlier)
        at = earlier[-1][0]
        return None if under_way or at > inspect_store.start else at


class _Phases:
    """Phases that are possible at a time."""

    def __init__(self, history: History) -> None:
        self._marks = [one for one in history.marks if one.kind in {"phase", "phase-change"}]

    def during(self, operation: Operation) -> frozenset[str]:
        """Return the phases in which an operation may have been answered."""
        possible: set[str] = set(STORES)
        for mark in self._marks:
            if operation.end is not None and mark.at > operation.end:
                if mark.kind == "phase":
                    # Observers see a change some time after it took effect.
                    return frozenset(possible | {mark.facts["phase"]})
                continue
            if mark.kind == "phase-change":
                possible.add(mark.facts["to"])
            elif mark.at < operation.start:
                possible = {mark.facts["phase"]}
            else:
                possible.add(mark.facts["phase"])
        return frozenset(possible)
