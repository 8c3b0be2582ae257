"""Request parsing and validation: all violations of a request are reported together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from sagastore.v1 import file_pb2, migration_pb2, session_pb2, storage_pb2
from sagastore_server.rpc import convert
from sagastore_server.search.pager import Order
from sagastore_server.search.parser import parse_query
from sagastore_server.storage.errors import InvalidRequestError
from sagastore_server.storage.model import NewMessage
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Criteria
from sagastore_server.storage.validation import (
    DEFAULT_EXPORT_BATCH,
    DEFAULT_PAGE_SIZE,
    MAX_BATCH,
    MAX_EXPORT_BATCH,
    MAX_ID,
    MAX_PAGE_SIZE,
    MAX_PROVIDER,
    MAX_QUERY,
    MAX_ROLE,
    MAX_SESSION_ID,
    Violations,
    is_plain,
)

_ORDERS = {
    storage_pb2.ORDER_UNSPECIFIED: Order.RELEVANCE,
    storage_pb2.ORDER_RELEVANCE: Order.RELEVANCE,
    storage_pb2.ORDER_NEWEST: Order.NEWEST,
    storage_pb2.ORDER_OLDEST: Order.OLDEST,
}
_ON_ALL_STORES = {
    storage_pb2.DURABILITY_UNSPECIFIED: False,
    storage_pb2.DURABILITY_PRIMARY: False,
    storage_pb2.DURABILITY_BOTH: True,
}
_PHASES: dict[int, Phase] = {phase.value: phase for phase in Phase}

MAX_BACKFILL_BATCH = 10_000
"""Maximum number of rows in a batch of the backfill."""


class Save(NamedTuple):
    """A validated SaveRequest."""

    draft: NewMessage
    if_revision: int | None
    on_all_stores: bool
    """Whether every store of the phase must have stored it."""


class Backfill(NamedTuple):
    """A validated ControlBackfillRequest; None leaves a value unchanged."""

    paused: bool | None
    batch_size: int | None
    max_rows_per_second: int | None


class Search(NamedTuple):
    """A validated SearchRequest."""

    criteria: Criteria
    order: Order
    page_size: int

    def fingerprint(self, text: str) -> tuple[object, ...]:
        """Return the fields that identify this search, for its page tokens."""
        return text, *self.criteria[1:], self.order.name


def save(request: storage_pb2.SaveRequest, new_id: str) -> Save:
    """Parse a SaveRequest; ``new_id`` is the id of a message without one.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    message = request.message
    if request.HasField("message"):
        draft = check.sent("message.", convert.sent_of(message, message.id or new_id))
    else:
        check.add("message", "is required")
    condition = None
    if request.HasField("if_revision"):
        condition = check.revision("if_revision", request.if_revision, lowest=0)
    everywhere = on_all_stores(check, request.durability)
    check.raise_if_any()
    return Save(draft, condition, everywhere)


def save_or_error(request: storage_pb2.SaveRequest, new_id: str) -> Save | InvalidRequestError:
    """As `save`, but returns the error."""
    try:
        return save(request, new_id)
    except InvalidRequestError as exc:
        return exc


def on_all_stores(check: Violations, durability: storage_pb2.Durability.ValueType) -> bool:
    """Return whether a durability asks for every store of the phase."""
    wanted = _ON_ALL_STORES.get(durability)
    if wanted is None:
        _unknown_value(check, "durability", durability)
    return bool(wanted)


def one_id(message_id: str) -> str:
    """Return the id of a GetRequest.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    if not is_plain(message_id, MAX_ID):
        check = Violations()
        check.text("id", message_id, MAX_ID, required=True)
        check.raise_if_any()
    return message_id


def delete(
    request: storage_pb2.DeleteRequest | file_pb2.DeleteFileRequest,
) -> tuple[str, int | None]:
    """Return the id and the ``if_revision`` of the request to delete a message or a file.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    check.text("id", request.id, MAX_ID, required=True)
    condition = None
    if request.HasField("if_revision"):
        condition = check.revision("if_revision", request.if_revision, lowest=1)
    check.raise_if_any()
    return request.id, condition


def batch_of_ids(ids: Sequence[str]) -> Sequence[str]:
    """Return the ids of a BatchGetRequest.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    if 1 <= len(ids) <= MAX_BATCH:
        for index, message_id in enumerate(ids):
            check.text(f"ids[{index}]", message_id, MAX_ID, required=True)
    else:
        check.add("ids", f"has {len(ids):,} entries, 1 to {MAX_BATCH:,} are allowed")
    check.raise_if_any()
    return ids


def list_page(request: storage_pb2.ListRequest) -> int:
    """Return the page size of a ListRequest.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    check.text("session_id", request.session_id, MAX_SESSION_ID)
    return checked_page_size(check, request.page_size)


def page_size(size: int) -> int:
    """Return the page size for ``size``, with default and maximum applied.

    Raises:
        InvalidRequestError: ``size`` is negative.

    """
    return checked_page_size(Violations(), size)


def export_batch(size: int) -> int:
    """Return the batch size for ``size``, with default and maximum applied.

    Raises:
        InvalidRequestError: ``size`` is negative.

    """
    check = Violations()
    batch = check.size("batch_size", size, DEFAULT_EXPORT_BATCH, MAX_EXPORT_BATCH)
    check.raise_if_any()
    return batch


def search(request: storage_pb2.SearchRequest) -> Search:
    """Parse a SearchRequest.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    if len(request.query) > MAX_QUERY:
        check.text("query", request.query, MAX_QUERY)
    check.text("provider", request.provider, MAX_PROVIDER)
    check.text("role", request.role, MAX_ROLE)
    check.tags("tags", request.tags)
    order = _ORDERS.get(request.order, Order.RELEVANCE)
    if request.order not in _ORDERS:
        _unknown_value(check, "order", request.order)
    start, end = times(check, request)
    criteria = Criteria(
        tags=tuple(request.tags),
        provider=request.provider or None,
        role=request.role or None,
        session_id=_session(check, request),
        start=start,
        end=end,
        metadata=contained(check, request.metadata_json),
    )
    size = checked_page_size(check, request.page_size)
    return Search(criteria._replace(text=parse_query(request.query)), order, size)


def phase(request: migration_pb2.ChangePhaseRequest) -> Phase:
    """Return the phase of a ChangePhaseRequest.

    Raises:
        InvalidRequestError: The phase is missing or unknown.

    """
    check = Violations()
    wanted = _PHASES.get(request.phase)
    if request.phase == migration_pb2.PHASE_UNSPECIFIED:
        check.add("phase", "is required")
    elif wanted is None:
        _unknown_value(check, "phase", request.phase)
    check.raise_if_any()
    return wanted or Phase.SQLITE_ONLY


def backfill(request: migration_pb2.ControlBackfillRequest) -> Backfill:
    """Parse a ControlBackfillRequest.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    paused = request.paused if request.HasField("paused") else None
    batch_size = max_rows_per_second = None
    if request.HasField("batch_size"):
        batch_size = request.batch_size
        if not 1 <= batch_size <= MAX_BACKFILL_BATCH:
            check.add("batch_size", f"is {batch_size}, 1 to {MAX_BACKFILL_BATCH:,} are allowed")
    if request.HasField("max_rows_per_second"):
        max_rows_per_second = request.max_rows_per_second
        if max_rows_per_second < 0:
            check.add("max_rows_per_second", f"is {max_rows_per_second}, 0 or more is allowed")
    check.raise_if_any()
    return Backfill(paused, batch_size, max_rows_per_second)


def _session(check: Violations, request: storage_pb2.SearchRequest) -> str | None:
    if not request.HasField("session_id"):
        return None
    check.text("session_id", request.session_id, MAX_SESSION_ID)
    return request.session_id


def times(
    check: Violations, request: storage_pb2.SearchRequest | session_pb2.ListSessionsRequest
) -> tuple[int | None, int | None]:
    """Return start and end of a range of time; None: not limited."""
    start = end = None
    if request.HasField("start_time"):
        start = _time(check, "start_time", request.start_time)
    if request.HasField("end_time"):
        end = _time(check, "end_time", request.end_time)
    return start, end


def _time(check: Violations, field: str, time: Timestamp) -> int:
    return check.timestamp(field, time.seconds, time.nanos)


def contained(check: Violations, text: str) -> str | None:
    """Return the metadata filter in canonical form; None for ``{}``, which matches all."""
    if not text:
        return None
    canonical = check.metadata("metadata_json", text)
    return None if canonical == "{}" else canonical


def checked_page_size(check: Violations, size: int) -> int:
    """Return a page size, and raise every violation found so far."""
    result = check.size("page_size", size, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    check.raise_if_any()
    return result


def _unknown_value(check: Violations, field: str, value: int) -> None:
    check.add(field, f"is {value}, not a known value")
