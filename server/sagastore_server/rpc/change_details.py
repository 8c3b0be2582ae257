"""Details of changes for the audit trail: resource ids and results of each RPC, no content."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from sagastore.v1 import migration_pb2
from sagastore_server.interfaces.audit import IN_PROGRESS, Audit, Describe, Details
from sagastore_server.interfaces.call_context import current
from sagastore_server.rpc.wire import InvalidText
from sagastore_server.storage.validation import MAX_SESSION_ID

INTERVAL = 60.0
"""Seconds between two lines about an open BulkSave, which bounds what a crash loses."""

_SHOWN_IDS = 5
"""Ids in the line of an Append or a BatchSave; the line also has their number."""

Target = Callable[..., Any]


def noting_changes(method: MethodDescriptor, target: Target, audit: Audit) -> Target:
    """Return ``target`` such that its calls can be described, if ``method`` changes the store."""
    if not audit.records_changes:
        return target
    if method.client_streaming:
        return _noting_batches(target, audit) if method.full_name in STREAMS else target
    describe = CHANGES.get(method.full_name)
    if describe is None:
        return target
    wrapped = _noting_progress if method.server_streaming else _noting_response
    return wrapped(describe, target)


def _noting_response(describe: Describe, target: Target) -> Target:
    @functools.wraps(target)
    async def noted(request: Any, *more: Any) -> Any:
        call = current()
        if call is None:
            return await target(request, *more)
        call.describe, call.request = describe, request
        response = call.response = await target(request, *more)
        return response

    return noted


def _noting_progress(describe: Describe, target: Target) -> Target:
    @functools.wraps(target)
    async def noted(request: Any) -> AsyncIterator[Any]:
        call = current()
        # A verification without repair only reads.
        if call is not None and request.repair:
            call.describe, call.request = describe, request
        async with aclosing(target(request)) as responses:
            async for response in responses:
                if call is not None:
                    call.response = response
                yield response

    return noted


def _noting_batches(target: Target, audit: Audit) -> Target:
    @functools.wraps(target)
    async def noted(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        call = current()
        counts = BulkCounts()
        if call is not None:
            call.describe, call.request = BulkCounts.take, counts
        latest = time.monotonic()
        async with aclosing(target(counts.reading(requests))) as responses:
            async for response in responses:
                counts.answered(response)
                now = time.monotonic()
                if call is not None and now - latest >= INTERVAL:
                    latest = now
                    audit.changed(call, IN_PROGRESS)
                yield response

    return noted


class BulkCounts:
    """Counts of a BulkSave since its previous audit line."""

    def __init__(self) -> None:
        """Start with zero."""
        self._first_session = ""
        self._reset()

    def _reset(self) -> None:
        self._batches = self._answered = self._rejected = 0
        self._saved = self._unchanged = self._skipped = 0

    async def reading(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Count the batches that are read."""
        async for request in requests:
            self._batches += 1
            if not self._first_session and not isinstance(request, InvalidText):
                self._first_session = _first_session(request.messages)
            yield request

    def answered(self, response: Any) -> None:
        """Count a batch that is stored."""
        self._answered += 1
        self._saved += response.saved
        self._unchanged += response.unchanged
        self._skipped += response.skipped
        self._rejected += len(response.rejected)

    def take(self, _response: Any) -> Details:
        """Return the counts, and start again with zero."""
        taken = (
            ("session", self._first_session),
            ("batches", self._batches),
            ("answered", self._answered),
            ("saved", self._saved),
            ("unchanged", self._unchanged),
            ("skipped", self._skipped),
            ("rejected", self._rejected),
        )
        self._reset()
        return taken


def _first_session(messages: Any) -> str:
    """Return the session of the first message, which has not been validated yet."""
    return next((message.session_id[:MAX_SESSION_ID] for message in messages), "")


def _save(request: Any, response: Any) -> Details:
    session = ("session", request.message.session_id)
    if response is None:
        return (("id", request.message.id), session)
    return (("id", response.id), session, ("revision", response.revision))


def _batch_save(request: Any, response: Any) -> Details:
    if isinstance(request, InvalidText):
        return ()
    found: Details = (
        ("session", _first_session([one.message for one in request.requests[:1]])),
        ("messages", len(request.requests)),
    )
    if response is None:
        return found
    saved = [one.saved.id for one in response.outcomes if one.HasField("saved")]
    ids = saved[:_SHOWN_IDS]
    return (
        *found,
        ("ids", ids),
        ("saved", len(saved)),
        ("failed", len(response.outcomes) - len(saved)),
    )


def _save_file(request: Any, response: Any) -> Details:
    if response is None:
        return (("id", request.file.id),)
    return (("id", response.id), ("revision", response.revision))


def _one_id(request: Any, _response: Any) -> Details:
    return (("id", request.id),)


def _append(request: Any, response: Any) -> Details:
    written = request.messages if response is None else response.saved
    ids = [message.id for message in written[:_SHOWN_IDS]]
    found: Details = (
        ("session", request.session_id),
        ("ids", [one for one in ids if one]),
        ("messages", len(request.messages)),
    )
    return found if response is None else (*found, ("revision", response.session.revision))


def _update_session(request: Any, response: Any) -> Details:
    found: Details = (("session", request.session.session_id),)
    return found if response is None else (*found, ("revision", response.session.revision))


def _truncate_session(request: Any, response: Any) -> Details:
    found: Details = (("session", request.session_id),)
    if response is None:
        return found
    ids = [message.id for message in response.removed[:_SHOWN_IDS]]
    removed = len(response.removed)
    return (*found, ("ids", ids), ("removed", removed), ("revision", response.session.revision))


def _delete_session(request: Any, response: Any) -> Details:
    found: Details = (("session", request.session_id),)
    return found if response is None else (*found, ("removed", response.deleted_messages))


def _change_phase(request: Any, response: Any) -> Details:
    known = migration_pb2.Phase.values()
    phase = migration_pb2.Phase.Name(request.phase) if request.phase in known else request.phase
    found: Details = (
        ("phase", phase),
        ("dry_run", request.dry_run),
        ("accept_quarantine", request.accept_quarantine),
    )
    return found if response is None else (*found, ("revision", response.migration.epoch))


def _control_backfill(request: Any, _response: Any) -> Details:
    names = ("paused", "batch_size", "max_rows_per_second")
    return tuple((name, getattr(request, name)) for name in names if request.HasField(name))


def _verify(_request: Any, response: Any) -> Details:
    if response is None:
        return (("repair", True),)
    return (
        ("repair", True),
        ("compared", response.compared),
        ("mismatches", response.mismatch_count),
        ("repaired", response.repaired),
    )


_V1 = "sagastore.v1"
CHANGES: dict[str, Describe] = {
    f"{_V1}.StorageService.Save": _save,
    f"{_V1}.StorageService.BatchSave": _batch_save,
    f"{_V1}.StorageService.Delete": _one_id,
    f"{_V1}.SessionService.Append": _append,
    f"{_V1}.SessionService.UpdateSession": _update_session,
    f"{_V1}.SessionService.TruncateSession": _truncate_session,
    f"{_V1}.SessionService.DeleteSession": _delete_session,
    f"{_V1}.FileService.SaveFile": _save_file,
    f"{_V1}.FileService.DeleteFile": _one_id,
    f"{_V1}.MigrationService.ChangePhase": _change_phase,
    f"{_V1}.MigrationService.ControlBackfill": _control_backfill,
    f"{_V1}.MigrationService.Verify": _verify,
}
"""The RPCs with one request that change the store or the migration."""
STREAMS = frozenset({f"{_V1}.StorageService.BulkSave"})
"""The RPCs that change the store by a stream of requests."""
