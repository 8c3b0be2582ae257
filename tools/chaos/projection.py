"""Projection of a history onto message ids: what each operation says about each id.

An answer that contains a message is a read of its id. An answer that lacks a message it should
contain (a page of a list or search, an export) is a read as well: at some moment of the call, the
id had no matching value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tools.chaos.history import History, Operation, Outcome
from tools.chaos.positions import is_weak
from tools.chaos.range_reads import Question, Scans
from tools.chaos.register_model import NEVER, Action, Call
from tools.chaos.sequence_order import Sequences
from tools.chaos.values import Shown, Value
from tools.chaos.violations import Kind, Violation, violation

DEFECTS = frozenset({"INVALID_ARGUMENT", "INTERNAL", "UNIMPLEMENTED", "DATA_LOSS", "UNKNOWN"})
"""Codes that a healthy service never returns to a valid call of a workload."""


class Projection:
    """Calls on each id, the values written to it, and violations visible without a search."""

    def __init__(self, history: History) -> None:
        """Project ``history``."""
        self.history = history
        self.calls: defaultdict[str, list[Call]] = defaultdict(list)
        self.values: defaultdict[str, dict[str, Value]] = defaultdict(dict)
        self.batches: defaultdict[int, list[Call]] = defaultdict(list)
        """The calls of each batch of unknown outcome."""
        self.violations: list[Violation] = []
        self._began = min((one.start for one in history), default=0)
        self._ended = max((one.end or one.start for one in history), default=0)
        self._births: dict[tuple[str, int], tuple[int | None, Operation]] = {}
        for operation in history:
            for value in values_of(operation):
                self.values[value.id][value.digest] = value
        sequences = Sequences(
            history, [(one, value) for one in history for value in values_of(one)]
        )
        self.violations += sequences.violations()
        self._scans = Scans(self, sequences)
        read = {
            "Baseline": self._baseline,
            "Save": self._save,
            "Delete": self._delete,
            "BulkSave": self._bulk,
            "Get": self._get,
            "BatchGet": self._batch_get,
            "List": self._scans.page,
            "Search": self._scans.page,
            "Export": self._scans.export,
        }
        for operation in history:
            self._check_code(operation)
            if operation.kind in read:
                read[operation.kind](operation)

    # ------------------------------------------------------------------ for all of them

    def report(self, kind: Kind, operation: Operation, what: str, id: str = "") -> None:
        """Report an answer that is wrong on its own."""
        self.violations.append(violation(self.history, kind, id, what, [operation]))

    def found(self, operation: Operation, item: Sequence[Any], question: Question | None) -> None:
        """Record that an answer contains a message; ``question`` is what was requested."""
        shown = Shown(*item)
        value = self.values[shown.id].get(shown.digest)
        if value is None:
            what = f"no client ever wrote {shown.label!r} [{shown.digest[:6]}]"
            self.report(Kind.PHANTOM, operation, what, shown.id)
            return
        self._check_birth(operation, shown)
        if question is not None and not question.holds(value):
            kind = Kind.LIST_EXTRA if operation.kind == "List" else Kind.SEARCH_EXTRA
            self.report(kind, operation, "the message does not match the request", shown.id)
        self.observe(operation, shown.id, Action.FIND, digest=shown.digest, revision=shown.revision)

    def _check_birth(self, operation: Operation, shown: Shown) -> None:
        version = shown.id, shown.revision
        created, other = self._births.setdefault(version, (shown.created, operation))
        if created != shown.created:
            what = f"revision {shown.revision} has two creation times"
            proof = violation(
                self.history, Kind.REVISION_REUSED, shown.id, what, [other, operation]
            )
            self.violations.append(proof)

    def observe(
        self, operation: Operation, id: str, action: Action, *, since: int = 0, **facts: Any
    ) -> None:
        """Record what an answer says about the state of an id.

        A read that need not show the latest state may show any that the id has had, and also a
        write that is not acknowledged yet: a standby shows a commit before the primary does, which
        still waits for the confirmation of the standby.
        """
        if operation.end is None:
            return
        start, end = since or operation.start, operation.end
        if is_weak(operation):
            start, end = self._began, self._ended
        self.calls[id].append(Call(operation.number, action, start, end, **facts))

    def _check_code(self, operation: Operation) -> None:
        """Report error codes that a valid call must not get."""
        if operation.code in DEFECTS and operation.reason:
            self.report(Kind.WRONG_ANSWER, operation, f"{operation.code} to a valid call")

    # ------------------------------------------------------------------ writes

    def _baseline(self, operation: Operation) -> None:
        """Record the initial messages."""
        for item in operation.answer.get("items", ()):
            shown = Shown(*item)
            self._check_birth(operation, shown)
            self.observe(
                operation, shown.id, Action.SAVE, digest=shown.digest, revision=shown.revision
            )

    def _save(self, operation: Operation) -> None:
        value, guard = Value.read(operation.args["value"]), operation.args.get("if_revision")
        tries, answer = operation.args.get("tries", 1), operation.answer
        if operation.outcome is Outcome.OK:
            if answer.get("id", value.id) != value.id:
                self.report(Kind.WRONG_ANSWER, operation, "the answer names another id", value.id)
            created = answer.get("created") if tries == 1 else None
            self.observe(
                operation, value.id, Action.SAVE, digest=value.digest, guard=guard,
                revision=answer["revision"], created=created, repeated=tries > 1,
            )  # fmt: skip
        self._refused(operation, value.id, guard)
        self._add_unknown(operation, value.id, Action.SAVE, digest=value.digest, guard=guard)

    def _delete(self, operation: Operation) -> None:
        id, guard = operation.args["id"], operation.args.get("if_revision")
        if operation.outcome is Outcome.OK:
            again = operation.args.get("tries", 1) > 1
            action = Action.DELETE_IF_THERE if again else Action.DELETE
            self.observe(operation, id, action, guard=guard)
        self._refused(operation, id, guard)
        self._add_unknown(operation, id, Action.DELETE, guard=guard)

    def _refused(self, operation: Operation, id: str, guard: int | None) -> None:
        """Record what a refusal says about the state."""
        if operation.outcome is not Outcome.REFUSED:
            return
        stored = operation.answer.get("stored_revision")
        nothing = "stored_revision" in operation.answer and stored is None
        if operation.code == "NOT_FOUND" or (operation.code == "ABORTED" and nothing):
            self.observe(operation, id, Action.ABSENT)
        elif operation.code == "ALREADY_EXISTS":
            self.observe(operation, id, Action.EXISTS, revision=stored)
        elif operation.code == "ABORTED":
            self.observe(operation, id, Action.MISMATCH, revision=stored, guard=guard)

    def _add_unknown(
        self, operation: Operation, id: str, action: Action, **facts: Any
    ) -> list[Call]:
        """Record attempts without an answer: they may take effect, even later."""
        attempts: int = operation.args.get("tries", 1)
        if operation.outcome in {Outcome.OK, Outcome.REFUSED}:
            attempts -= 1
        made = [
            Call(operation.number, action, operation.start, NEVER, must=False, **facts)
            for _ in range(attempts)
        ]
        self.calls[id] += made
        return made

    def _bulk(self, operation: Operation) -> None:
        values = [Value.read(one) for one in operation.args["values"]]
        skip = operation.args.get("skip", False)
        action = Action.SAVE_IF_NEW if skip else Action.SAVE
        changed = self._changed(operation, len(values), skip=skip)
        for value in values:
            digest = value.digest
            if operation.outcome is Outcome.OK:
                self.observe(operation, value.id, action, changed=changed, digest=digest)
            made = self._add_unknown(operation, value.id, action, digest=digest)
            if len(made) == 1 and operation.outcome is not Outcome.OK:
                self.batches[operation.number] += made

    def _changed(self, operation: Operation, count: int, *, skip: bool) -> bool | None:
        """Return whether a batch changed all (True) or none (False) of its messages."""
        if operation.outcome is not Outcome.OK:
            return None
        answer = operation.answer
        saved, kept = answer["saved"], answer["skipped" if skip else "unchanged"]
        rejected = answer.get("rejected", 0)
        if saved + kept != count or rejected != operation.args.get("invalid", 0):
            self.report(Kind.WRONG_ANSWER, operation, f"{count} valid messages were sent")
            return None
        if operation.args.get("tries", 1) > 1:
            return None
        return {count: True, 0: False}.get(saved)

    # ------------------------------------------------------------------ reads

    def _get(self, operation: Operation) -> None:
        id = operation.args["id"]
        if operation.outcome is Outcome.OK:
            (item,) = operation.answer["items"]
            if item[0] != id:
                self.report(Kind.WRONG_ANSWER, operation, f"the answer contains {item[0]}", id)
            self.found(operation, item, None)
        elif operation.code == "NOT_FOUND":
            self.observe(operation, id, Action.ABSENT)

    def _batch_get(self, operation: Operation) -> None:
        if operation.outcome is not Outcome.OK:
            return
        items, missing = operation.answer["items"], operation.answer["missing"]
        asked, shown = operation.args["ids"], {item[0] for item in items}
        expected = ([id for id in asked if id in shown], [id for id in asked if id not in shown])
        if ([item[0] for item in items], list(missing)) != expected:
            self.report(
                Kind.WRONG_ANSWER,
                operation,
                "the answer does not match the requested ids and their order",
            )
        for item in items:
            self.found(operation, item, None)
        for id in missing:
            self.observe(operation, id, Action.ABSENT)


def values_of(operation: Operation) -> Iterable[Value]:
    """Return the values that an operation writes."""
    if operation.kind == "Save":
        yield Value.read(operation.args["value"])
    elif operation.kind == "BulkSave":
        yield from map(Value.read, operation.args["values"])
    elif operation.kind == "Baseline":
        yield from map(Value.read, operation.answer.get("values", ()))
