"""Parsing and validation of the requests of SessionService."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sagastore.v1 import session_pb2
from sagastore_server.rpc import convert, requests
from sagastore_server.storage.model import NewMessage
from sagastore_server.storage.session_base import MAX_TRUNCATED
from sagastore_server.storage.sessions import SessionCriteria
from sagastore_server.storage.validation import (
    MAX_BATCH,
    MAX_ID,
    MAX_PROVIDER,
    MAX_SESSION_ID,
    MAX_SESSION_METADATA,
    MAX_TITLE,
    Violations,
)

_FIELDS = ("title", "metadata_json")
"""The fields of a session that UpdateSession changes."""


class Append(NamedTuple):
    """A validated AppendRequest."""

    session_id: str
    drafts: list[NewMessage]
    if_revision: int | None
    on_all_stores: bool
    """Whether every store of the phase must have stored it."""


class Update(NamedTuple):
    """A validated UpdateSessionRequest; None leaves a value unchanged."""

    session_id: str
    title: str | None
    metadata: str | None
    if_revision: int | None


class Truncate(NamedTuple):
    """A validated TruncateSessionRequest."""

    session_id: str
    drop_last: int | None
    keep_through: str | None
    if_revision: int | None


class ListSessions(NamedTuple):
    """A validated ListSessionsRequest."""

    criteria: SessionCriteria
    oldest_first: bool
    page_size: int

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """The fields that identify this list, for its page tokens."""
        return *self.criteria, self.oldest_first


def append(request: session_pb2.AppendRequest, new_id: Callable[[], str]) -> Append:
    """Parse an AppendRequest; ``new_id`` returns an id for a message without one.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    _session_id(check, request.session_id)
    count = len(request.messages)
    if not 1 <= count <= MAX_BATCH:
        check.add("messages", f"has {count:,} entries, 1 to {MAX_BATCH:,} are allowed")
        check.raise_if_any()
    drafts: list[NewMessage] = []
    places: dict[str, int] = {}
    for index, message in enumerate(request.messages):
        prefix = f"messages[{index}]."
        draft = check.sent(prefix, convert.sent_of(message, message.id or new_id()))
        if message.HasField("session_id") and message.session_id != request.session_id:
            check.add(prefix + "session_id", "is not the session_id of the request; leave it unset")
        first = places.setdefault(draft.id, index)
        if first != index:
            check.add(prefix + "id", f"is the id of messages[{first}] too; ids must differ")
        drafts.append(draft._replace(session_id=request.session_id))
    condition = _condition(check, request, lowest=0)
    on_all_stores = requests.on_all_stores(check, request.durability)
    check.raise_if_any()
    return Append(request.session_id, drafts, condition, on_all_stores)


def session_id(request: session_pb2.GetSessionRequest) -> str:
    """Return the id of a GetSessionRequest.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    _session_id(check, request.session_id)
    check.raise_if_any()
    return request.session_id


def list_sessions(request: session_pb2.ListSessionsRequest) -> ListSessions:
    """Parse a ListSessionsRequest.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    check.text("provider", request.provider, MAX_PROVIDER)
    check.text("title_prefix", request.title_prefix, MAX_TITLE)
    start, end = requests.times(check, request)
    criteria = SessionCriteria(
        start=start,
        end=end,
        metadata=requests.contained(check, request.metadata_json),
        provider=request.provider or None,
        title_prefix=request.title_prefix or None,
    )
    size = requests.checked_page_size(check, request.page_size)
    return ListSessions(criteria, request.oldest_first, size)


def update(request: session_pb2.UpdateSessionRequest) -> Update:
    """Parse an UpdateSessionRequest.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    if not request.HasField("session"):
        check.add("session", "is required")
    session = request.session
    _session_id(check, session.session_id, "session.session_id")
    paths = list(request.update_mask.paths) or list(_FIELDS)
    for index, path in enumerate(paths):
        if path not in _FIELDS:
            field = f"update_mask.paths[{index}]"
            check.add(field, f"is {path!r}; title and metadata_json can be changed")
    title = metadata = None
    if "title" in paths:
        title = session.title
        check.text("session.title", title, MAX_TITLE)
    if "metadata_json" in paths:
        field = "session.metadata_json"
        metadata = check.metadata(field, session.metadata_json, MAX_SESSION_METADATA)
    condition = _condition(check, request, lowest=0)
    check.raise_if_any()
    return Update(session.session_id, title, metadata, condition)


def truncate(request: session_pb2.TruncateSessionRequest) -> Truncate:
    """Parse a TruncateSessionRequest.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    _session_id(check, request.session_id)
    if bool(request.drop_last) == bool(request.keep_through):
        check.add("drop_last", "or keep_through must be set, and not both")
    elif not request.keep_through and not 1 <= request.drop_last <= MAX_TRUNCATED:
        check.add("drop_last", f"is {request.drop_last}, 1 to {MAX_TRUNCATED:,} are allowed")
    check.text("keep_through", request.keep_through, MAX_ID)
    condition = _condition(check, request, lowest=1)
    check.raise_if_any()
    return Truncate(
        request.session_id, request.drop_last or None, request.keep_through or None, condition
    )


def delete(request: session_pb2.DeleteSessionRequest) -> tuple[str, int | None]:
    """Return the id and the ``if_revision`` of a DeleteSessionRequest.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    _session_id(check, request.session_id)
    condition = _condition(check, request, lowest=1)
    check.raise_if_any()
    return request.session_id, condition


def _session_id(check: Violations, value: str, field: str = "session_id") -> None:
    check.text(field, value, MAX_SESSION_ID)


def _condition(
    check: Violations,
    request: session_pb2.AppendRequest
    | session_pb2.UpdateSessionRequest
    | session_pb2.TruncateSessionRequest
    | session_pb2.DeleteSessionRequest,
    *,
    lowest: int,
) -> int | None:
    if not request.HasField("if_revision"):
        return None
    return check.revision("if_revision", request.if_revision, lowest=lowest)
