"""BatchSave: many saves in one call and one commit, each with its own outcome.

A batch passes three steps:

1. `parse` validates each request, in a worker process if the batch is large, and assigns the ids
   that are missing;
2. `run` hands the valid requests to the store as one write. An error of the store that concerns
   all of them ends the call, unless some requests were invalid: then each gets its own error;
3. each request gets the response or the status that Save would have ended with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import grpc
import structlog

from sagastore.v1 import storage_pb2
from sagastore_server.interfaces.call_context import current
from sagastore_server.rpc import convert, requests
from sagastore_server.rpc.ids import IdSource
from sagastore_server.rpc.offload import save_cost
from sagastore_server.rpc.status import refusal_of
from sagastore_server.rpc.wire import InvalidText, by_entry, merged
from sagastore_server.runtime.worker_pool import SHORT, WorkerPool
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import InvalidRequestError, StorageError
from sagastore_server.storage.model import SaveRequest, SaveResult
from sagastore_server.storage.validation import MAX_BATCH, Violations

_AT_ONCE = 100
"""Requests that are handled before other calls get their turn: a message may have 6 MiB, but a
request of the default limit at most 32."""

Checked = requests.Save | InvalidRequestError
_Outcome = SaveResult | Exception

_log = structlog.get_logger(__name__)


async def parse(
    request: storage_pb2.BatchSaveRequest | InvalidText, ids: IdSource, pool: WorkerPool
) -> list[Checked]:
    """Validate each request; return it, or what is wrong with it.

    Raises:
        InvalidRequestError: The batch as a whole is invalid.

    """
    unreadable = {}
    if isinstance(request, InvalidText):
        if request.repaired is None:
            raise InvalidRequestError(request.violations)
        unreadable = by_entry(request.violations, "requests")
        request = cast("storage_pb2.BatchSaveRequest", request.repaired)
    count = len(request.requests)
    if not 1 <= count <= MAX_BATCH:
        check = Violations()
        check.add("requests", f"has {count:,} entries, 1 to {MAX_BATCH:,} are allowed")
        check.raise_if_any()
    new_ids = ["" if one.message.id else ids.new() for one in request.requests]
    if sum(map(save_cost, request.requests)) < SHORT:
        pairs = zip(request.requests, new_ids, strict=True)
        checked: list[Checked] = [requests.save_or_error(*one) for one in pairs]
    else:
        checked = await pool.map(_check, await _serialized(request.requests, new_ids))
    for index, violations in unreadable.items():
        found = checked[index]
        others = found.violations if isinstance(found, InvalidRequestError) else ()
        checked[index] = InvalidRequestError(tuple(merged(violations, others)))
    return checked


async def _serialized(
    sent: Sequence[storage_pb2.SaveRequest], new_ids: Sequence[str]
) -> list[tuple[str, bytes]]:
    """Return the arguments of `_check`; to pickle all messages at once would hold the loop."""
    found = []
    for number, (one, new_id) in enumerate(zip(sent, new_ids, strict=True), start=1):
        found.append((new_id, one.SerializeToString()))
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    return found


def _check(new_id: str, request: bytes) -> Checked:
    """Validate a serialized SaveRequest; runs in a worker process."""
    return requests.save_or_error(storage_pb2.SaveRequest.FromString(request), new_id)


async def run(
    checked: Sequence[Checked], backend: StorageBackend, within: float
) -> storage_pb2.BatchSaveResponse:
    """Store the valid requests of a batch, and return what became of each.

    ``within`` are the seconds that a request may wait for every store of the phase.

    Raises:
        StorageError: The store failed, and every request was valid.

    """
    wanted = [
        SaveRequest(one.draft, one.if_revision, within if one.on_all_stores else None)
        for one in checked
        if not isinstance(one, InvalidRequestError)
    ]
    stored = iter(await _stored(wanted, backend, may_raise=len(wanted) == len(checked)))
    outcomes = [one if isinstance(one, InvalidRequestError) else next(stored) for one in checked]
    response = storage_pb2.BatchSaveResponse()
    defects: list[Exception] = []
    for number, outcome in enumerate(outcomes, start=1):
        if not isinstance(outcome, Exception):
            response.outcomes.add().saved.CopyFrom(convert.saved(outcome))
        elif _add_failure(response, outcome) is grpc.StatusCode.INTERNAL:
            defects.append(outcome)
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    if defects:
        # One line for a call, as other methods write.
        _log.error(
            "internal error",
            method="BatchSave",
            call=_call_id(),
            requests=len(defects),
            exc_info=defects[0],
        )
    return response


async def _stored(
    wanted: Sequence[SaveRequest], backend: StorageBackend, *, may_raise: bool
) -> Sequence[_Outcome]:
    if not wanted:
        return []
    try:
        return await backend.batch_save(wanted)
    except StorageError as exc:
        if may_raise:
            raise
        return [exc] * len(wanted)


def _add_failure(response: storage_pb2.BatchSaveResponse, error: Exception) -> grpc.StatusCode:
    refusal = refusal_of(error, _call_id())
    code, _ = refusal.code.value
    response.outcomes.add().failure.MergeFrom(
        storage_pb2.Failure(code=code, message=refusal.message, status=refusal.details)
    )
    return refusal.code


def _call_id() -> str:
    call = current()
    return "" if call is None else call.id
