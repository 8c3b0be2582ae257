"""Kinds of violation, and their text form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tools.chaos.history import History, Mark, Operation, Outcome

_SHOWN = 6
"""Maximum number of messages shown per answer."""


class Kind(StrEnum):
    """Kind of violation."""

    LOST_WRITE = "LOST_WRITE"
    """An acknowledged write disappeared and no later read returned it."""
    STALE_READ = "STALE_READ"
    """An older state was returned after a newer one was acknowledged or returned."""
    STALE_POSITION = "STALE_POSITION"
    """A read that requires a position does not show a state at or before that position."""
    RESURRECTED_DELETE = "RESURRECTED_DELETE"
    """A deleted message reappeared without a new save."""
    PHANTOM = "PHANTOM"
    """A value that no client wrote, or that was returned before it was written."""
    NOT_LINEARIZABLE = "NOT_LINEARIZABLE"
    """No order of the calls explains the answers; none of the other kinds applies."""
    GUARD_BROKEN = "GUARD_BROKEN"
    """A write was accepted or refused contrary to ``if_revision``."""
    REVISION_WENT_BACK = "REVISION_WENT_BACK"
    REVISION_REUSED = "REVISION_REUSED"
    """One revision of one id has two values or two creation times, or after a promotion two ids
    have the same revision."""
    LIST_MISSING = "LIST_MISSING"
    LIST_EXTRA = "LIST_EXTRA"
    SEARCH_MISSING = "SEARCH_MISSING"
    SEARCH_EXTRA = "SEARCH_EXTRA"
    EXPORT_INCOMPLETE = "EXPORT_INCOMPLETE"
    EXPORT_TWICE = "EXPORT_TWICE"
    WRONG_ORDER = "WRONG_ORDER"
    WRONG_ANSWER = "WRONG_ANSWER"
    """An answer that contradicts itself or its request."""
    BULK_NOT_ATOMIC = "BULK_NOT_ATOMIC"
    """A part of a batch was observed, and another part is missing."""
    DURABLE_ON_LIE = "DURABLE_ON_LIE"
    UNDECIDED = "UNDECIDED"
    """The search exceeded its budget: neither proved nor disproved."""


@dataclass(frozen=True)
class Violation:
    """Violation with the few operations that prove it."""

    kind: Kind
    id: str
    """The message id, or "" if it concerns an answer as a whole."""
    what: str
    operations: tuple[Operation, ...] = ()
    marks: tuple[Mark, ...] = ()
    """Events of the service between the first and the last of the operations."""
    began: int = 0
    """Start of the history."""

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": str(self.kind),
            "id": self.id,
            "what": self.what,
            "operations": [operation.as_json() for operation in self.operations],
            "marks": [mark.as_json() for mark in self.marks],
        }

    def __str__(self) -> str:
        """Return one line, followed by a line for each operation and event."""
        about = f" of {self.id}" if self.id else ""
        lines = [
            (operation.start, describe(operation, self.began, self.id))
            for operation in self.operations
        ]
        lines += [(mark.at, _describe_mark(mark, self.began)) for mark in self.marks]
        details = "".join(f"\n  {line}" for _, line in sorted(lines))
        return f"{self.kind}{about}: {self.what}{details}"


def violation(
    history: History, kind: Kind, id: str, what: str, operations: Iterable[int | Operation]
) -> Violation:
    """Return a violation that the given operations prove."""
    found = {
        one if isinstance(one, int) else one.number: history.operations[one]
        if isinstance(one, int)
        else one
        for one in operations
    }
    proof = tuple(sorted(found.values(), key=lambda one: one.start))
    began = history.operations[0].start if len(history) else 0
    return Violation(kind, id, what, proof, _between(history, proof), began)


def _between(history: History, proof: Sequence[Operation]) -> tuple[Mark, ...]:
    if not proof:
        return ()
    first = min(one.start for one in proof)
    last = max(one.start if one.end is None else one.end for one in proof)
    return tuple(mark for mark in history.marks if first <= mark.at <= last)


def describe(operation: Operation, began: int, id: str = "") -> str:
    """Return an operation in one line; long answers are reduced to ``id`` or a few messages."""
    until = "…" if operation.end is None else _seconds(operation.end, began)
    span = f"{_seconds(operation.start, began)}–{until}"
    asked = ", ".join(_asked(operation.args, id))
    code = f"{operation.code} {operation.reason}".strip()
    said = _said(operation.answer, id)
    if operation.outcome is Outcome.OK:
        end = said or "ok"
    elif operation.outcome is Outcome.REFUSED:
        end = f"refused, {code}" + (f" ({said})" if said else "")
    else:
        end = f"outcome unknown ({code or 'no answer'})"
    return (
        f"{span}  #{operation.number} client {operation.client}  {operation.kind}({asked}) → {end}"
    )


def _describe_mark(mark: Mark, began: int) -> str:
    facts = " ".join(f"{name}={value}" for name, value in mark.facts.items())
    return f"{_seconds(mark.at, began)}  -- {mark.kind} {facts}"


def _seconds(at: int, began: int) -> str:
    return f"{(at - began) / 1e9:.4f} s"


def _asked(args: Mapping[str, Any], id: str) -> Iterable[str]:
    for name, value in args.items():
        if name == "value":
            yield f"{value['id']}: {_value(value)}"
        elif name == "values":
            mine = [one for one in value if one["id"] == id]
            yield f"{len(value)} messages" + (f", with {id}: {_value(mine[0])}" if mine else "")
        elif name == "ids":
            yield f"{len(value)} ids" + (f", with {id}" if id in value else "")
        elif value is not None:
            yield f"{name}={value}"


def _value(record: Mapping[str, Any]) -> str:
    return f"{record.get('label', '')} [{record['digest'][:6]}]"


def _said(answer: Mapping[str, Any], id: str) -> str:
    return ", ".join(
        f"{len(value)} messages: {_shown(value, id)}"
        if name == "items"
        else f"{len(value)} missing" + (f", with {id}" if id in value else "")
        if name == "missing"
        else f"{name}={value}"
        for name, value in answer.items()
    )


def _shown(items: Sequence[Sequence[Any]], id: str) -> str:
    mine = [item for item in items if item[0] == id]
    if id and not mine:
        return f"{id} is not among them"
    shown = [f"{item[0]}: {item[2]} [{item[1][:6]}] revision {item[3]}" for item in mine or items]
    return "; ".join(shown[:_SHOWN]) + ("; …" if len(shown) > _SHOWN else "")
