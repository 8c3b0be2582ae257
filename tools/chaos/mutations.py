"""Mutations that make a correct history incorrect."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tools.chaos.history import History, Operation, Outcome
from tools.chaos.history_generator import STEP
from tools.chaos.values import Shown, Value
from tools.chaos.violations import Kind

READS = {
    Kind.LOST_WRITE,
    Kind.STALE_READ,
    Kind.RESURRECTED_DELETE,
    Kind.LIST_MISSING,
    Kind.SEARCH_MISSING,
    Kind.EXPORT_INCOMPLETE,
    Kind.BULK_NOT_ATOMIC,
}

Mutation = Callable[[History, random.Random], bool]
"""Mutates a history in place; returns False if the history offers no opportunity."""


def _operations(history: History, kind: str, outcome: Outcome = Outcome.OK) -> list[Operation]:
    return [one for one in history if one.kind == kind and one.outcome is outcome]


def _replace_items(operation: Operation, items: list[Shown]) -> None:
    operation.answer = {**operation.answer, "items": items}


def _items(operation: Operation) -> list[Shown]:
    return [Shown(*item) for item in operation.answer.get("items", ())]


def value_never_written(history: History, draw: random.Random) -> bool:
    for operation in _operations(history, "Get"):
        _replace_items(operation, [_items(operation)[0]._replace(digest="unknown")])
        return True
    return False


def revision_with_two_values(history: History, draw: random.Random) -> bool:
    """Make two reads of different values of one id return the same revision."""
    seen: dict[str, Shown] = {}
    for operation in _operations(history, "Get"):
        (item,) = _items(operation)
        other = seen.setdefault(item.id, item)
        if other.digest != item.digest:
            _replace_items(operation, [item._replace(revision=other.revision)])
            return True
    return False


def acknowledged_write_lost(history: History, draw: random.Random) -> bool:
    """Remove the last acknowledged write from all answers."""
    for id, item in _final(history).items():
        if _is_sure(history, item) and _forget(history, id, item):
            return True
    return False


def _final(history: History) -> dict[str, Shown]:
    """Return the result of the last Get of each id."""
    return {item.id: item for one in _operations(history, "Get") for item in _items(one)}


def _is_sure(history: History, item: Shown) -> bool:
    """Return whether exactly one answered save wrote it and nothing removes it."""
    written = [
        one for one in history if item.digest in str(one.args.get("value", one.args.get("values")))
    ]
    if len(written) != 1 or written[0].kind != "Save" or written[0].outcome is not Outcome.OK:
        return False
    end = written[0].end or 0
    return not any(
        (one.outcome is not Outcome.REFUSED and (one.end or 0) > written[0].start)
        or one.outcome in {Outcome.UNKNOWN, Outcome.OPEN}
        for one in _writes(history, item.id)
        if one is not written[0]
    ) and end < max(one.start for one in history)


def _writes(history: History, id: str) -> list[Operation]:
    return [
        one
        for one in history
        if one.kind in {"Save", "Delete", "BulkSave"}
        and id in str(one.args.get("id", one.args.get("value", one.args.get("values"))))
    ]


def _forget(history: History, id: str, item: Shown) -> bool:
    """Remove an item from all answers."""
    for operation in history:
        items = _items(operation)
        left = [one for one in items if (one.id, one.digest) != (id, item.digest)]
        if len(left) == len(items):
            continue
        if operation.kind == "Get":
            operation.outcome, operation.code, operation.answer = Outcome.REFUSED, "NOT_FOUND", {}
            continue
        _replace_items(operation, left)
        if operation.kind == "BatchGet":
            absent = {*operation.answer["missing"], id}
            missing = [one for one in operation.args["ids"] if one in absent]
            operation.answer = {**operation.answer, "missing": missing}
    return True


def stale_final_value(history: History, draw: random.Random) -> bool:
    """Make the last Get of an id return an earlier version."""
    first: dict[str, Shown] = {}
    gets = _operations(history, "Get")
    for operation in gets:
        for item in _items(operation):
            first.setdefault(item.id, item)
    for operation in reversed(gets):
        (item,) = _items(operation)
        older = first[item.id]
        if older.digest != item.digest and older.revision < _certain(history, operation):
            _replace_items(operation, [older])
            return True
    return False


def _certain(history: History, reader: Operation) -> int:
    """Return the highest revision of an id that was answered before a call on it began."""
    id = reader.args.get("id") or reader.args["value"]["id"]
    revisions = [0]
    for one in history:
        if (one.end or 0) < reader.start:
            revisions += [item.revision for item in _items(one) if item.id == id]
            if one.kind == "Save" and one.args["value"]["id"] == id:
                revisions.append(one.answer.get("revision", 0))
    return max(revisions)


def delete_undone(history: History, draw: random.Random) -> bool:
    """Make the last Get of a deleted message return its former value."""
    first = {item.id: item for one in reversed(_operations(history, "Get")) for item in _items(one)}
    for operation in reversed(_operations(history, "Get", Outcome.REFUSED)):
        item = first.get(operation.args["id"])
        if item is None or operation.start < max(one.start for one in history) - 10 * STEP:
            continue
        # Only an observed absence makes the deletion certain.
        there = max(one.end or 0 for one in _operations(history, "Get") if item in _items(one))
        unavailable_faults = any(
            one.args["id"] == item.id and there < one.start and (one.end or 0) < operation.start
            for one in _operations(history, "Get", Outcome.REFUSED)
        )
        if unavailable_faults and not _may_be_saved_again(history, item):
            operation.outcome, operation.code = Outcome.OK, ""
            _replace_items(operation, [item])
            return True
    return False


def _may_be_saved_again(history: History, item: Shown) -> bool:
    return (
        any(
            one.outcome is not Outcome.REFUSED
            for one in _writes(history, item.id)
            if item.digest in str(one.args) and one.outcome is not Outcome.OK
        )
        or sum(item.digest in str(one.args) for one in history) != 1
    )


def message_missing_in(kind: str) -> Mutation:
    def mutate(history: History, draw: random.Random) -> bool:
        found = [one for one in _operations(history, kind) if _items(one)]
        for operation in reversed(found):
            items = _items(operation)
            for item in items:
                if _is_sure(history, item) and _ended_before(history, item, operation):
                    last = item == items[-1] and operation.answer.get("more")
                    if not last:
                        _replace_items(operation, [one for one in items if one != item])
                        return True
        return False

    return mutate


def _ended_before(history: History, item: Shown, operation: Operation) -> bool:
    (save,) = [one for one in history if item.digest in str(one.args.get("value"))]
    return (save.end or 0) < _chain_start(history, operation)


def _chain_start(history: History, operation: Operation) -> int:
    same = [one for one in history if one.args.get("export") == operation.args.get("export")]
    return min(one.start for one in same) if operation.kind == "Export" else operation.start


def foreign_message_in(kind: str) -> Mutation:
    def mutate(history: History, draw: random.Random) -> bool:
        for operation in reversed(_operations(history, kind)):
            for item in _final(history).values():
                written = Value.read(
                    next(
                        value
                        for one in history
                        for value in _values(one)
                        if value["digest"] == item.digest
                    )
                )
                args = operation.args
                foreign = (
                    args.get("session") not in {None, written.session}
                    or args.get("tag") not in {None, *written.tags}
                    or args.get("word") not in {None, *written.words}
                )
                if foreign:
                    _replace_items(operation, [*_items(operation), item])
                    return True
        return False

    return mutate


def _values(operation: Operation) -> list[dict[str, Any]]:
    one = operation.args.get("value")
    return list(operation.args.get("values", ())) or ([one] if one else [])


def export_repeats_message(history: History, draw: random.Random) -> bool:
    for operation in _operations(history, "Export"):
        if items := _items(operation):
            _replace_items(operation, [*items, items[-1]])
            return True
    return False


def page_out_of_order(history: History, draw: random.Random) -> bool:
    for operation in _operations(history, "List"):
        if len(items := _items(operation)) > 1:
            _replace_items(operation, items[::-1])
            return True
    return False


def first_storage_out_of_order(history: History, draw: random.Random) -> bool:
    """Give a message a greater sequence than all that were stored after it."""
    shown = {(item.id, item.revision) for one in history for item in _items(one)}
    births = [
        (one, version)
        for one in _operations(history, "Save")
        if one.answer["created"]
        and (version := (one.args["value"]["id"], one.answer["revision"])) in shown
    ]
    for operation, version in births:
        if any((operation.end or 0) < other.start for other, _ in births):
            return _change_sequence(history, *version, 10**9)
    return False


def sequence_of_two_messages(history: History, draw: random.Random) -> bool:
    shown = [item for one in _operations(history, "Get") for item in _items(one)]
    for item in shown:
        for other in shown:
            if item.id != other.id:
                return _change_sequence(history, item.id, item.created, other.sequence)
    return False


def _change_sequence(history: History, id: str, created: int | None, sequence: int) -> bool:
    """Change the sequence of a life of an id in all answers; generated lives begin with the
    revision that is their creation time.
    """
    changed = False
    for operation in history:
        items = _items(operation)
        for at, item in enumerate(items):
            if (item.id, item.created) == (id, created):
                items[at] = item._replace(sequence=sequence)
                changed = True
        if items:
            _replace_items(operation, items)
    return changed


def stale_guard_accepted(history: History, draw: random.Random) -> bool:
    for operation in _operations(history, "Save", Outcome.REFUSED):
        guard = operation.args["if_revision"]
        if operation.code != "ABORTED" or guard >= _certain(history, operation):
            continue
        revision = 1 + _certain(history, operation)
        operation.outcome, operation.code = Outcome.OK, ""
        operation.answer = {"revision": revision, "created": False, "durable_on": ["SQLITE"]}
        return True
    return False


def matching_guard_refused(history: History, draw: random.Random) -> bool:
    for operation in _operations(history, "Save"):
        guard = operation.args.get("if_revision")
        if guard:
            operation.outcome, operation.code = Outcome.REFUSED, "ABORTED"
            operation.answer = {"stored_revision": guard}
            return True
    return False


def revision_goes_back(history: History, draw: random.Random) -> bool:
    saves: dict[str, Operation] = {}
    for operation in _operations(history, "Save"):
        before = saves.setdefault(operation.args["value"]["id"], operation)
        apart = (before.end or 0) < operation.start
        if apart and before.answer["revision"] < operation.answer["revision"]:
            answers = before.answer, operation.answer
            operation.answer = {**answers[1], "revision": answers[0]["revision"] - 1}
            return bool(operation.args["value"]["digest"] != before.args["value"]["digest"])
    return False


def durable_nowhere(history: History, draw: random.Random) -> bool:
    for operation in _operations(history, "Save"):
        operation.answer = {**operation.answer, "durable_on": []}
        return True
    return False


MUTATIONS: dict[Mutation, set[Kind]] = {
    value_never_written: {Kind.PHANTOM},
    revision_with_two_values: {Kind.REVISION_REUSED},
    acknowledged_write_lost: {Kind.LOST_WRITE},
    stale_final_value: {Kind.STALE_READ, Kind.LOST_WRITE, Kind.RESURRECTED_DELETE},
    delete_undone: {Kind.RESURRECTED_DELETE, Kind.LOST_WRITE},
    message_missing_in("List"): {Kind.LIST_MISSING},
    message_missing_in("Search"): {Kind.SEARCH_MISSING},
    message_missing_in("Export"): {Kind.EXPORT_INCOMPLETE},
    foreign_message_in("List"): {Kind.LIST_EXTRA},
    foreign_message_in("Search"): {Kind.SEARCH_EXTRA},
    export_repeats_message: {Kind.EXPORT_TWICE},
    page_out_of_order: {Kind.WRONG_ORDER},
    first_storage_out_of_order: {Kind.WRONG_ORDER},
    sequence_of_two_messages: {Kind.WRONG_ORDER},
    stale_guard_accepted: {
        Kind.GUARD_BROKEN,
        Kind.REVISION_WENT_BACK,
        Kind.REVISION_REUSED,
        *READS,
    },
    matching_guard_refused: {Kind.GUARD_BROKEN},
    revision_goes_back: {Kind.REVISION_WENT_BACK},
    durable_nowhere: {Kind.DURABLE_ON_LIE},
}
