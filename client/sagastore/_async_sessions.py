"""The asyncio client's operations on sessions."""

# Timeouts are sent to the server or span several calls; `asyncio.timeout` cannot replace them.
# ruff: noqa: ASYNC109

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sagastore import _convert_sessions as convert
from sagastore import _json
from sagastore._arguments import checked
from sagastore._async_paging import AsyncPager
from sagastore._async_reads import batch_get, chosen, with_token
from sagastore._call import Caller, History, annotated, may_have_taken_effect
from sagastore._consistency import Consistency
from sagastore._convert import invalid, member, naming, same_message, timestamp_to_pb
from sagastore._enums import Durability
from sagastore._model import Message, Page
from sagastore._retry import Deadline
from sagastore._session_model import AppendResult, Session, TruncateResult
from sagastore.errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    NotFoundError,
    UnavailableError,
)
from sagastore.v1 import session_pb2 as pb
from sagastore.v1 import storage_pb2

__all__ = ["DELETE_TIMEOUT", "AsyncSessionClient"]

DELETE_TIMEOUT = 600.0
"""Total seconds; a session of any size is deleted in one call."""

_APPENDED = (
    "an earlier attempt of this call may have stored the messages; read the session to decide"
)
_CHANGED = "an earlier attempt of this call may have changed the session; read it to decide"
_REMOVED = "an earlier attempt of this call may have removed messages; read the session to decide"
_REMOVED_ONCE = (
    "the messages may have been removed, and a repeated call would remove others; read the session "
    "before you call again, or pass if_revision"
)
_DELETED = "an earlier attempt of this call may have begun the deletion; read the session to decide"


class AsyncSessionClient:
    """Reads and changes conversations as a whole; available as `AsyncClient.sessions`.

    Besides the errors that a method documents, each method can raise
    `UnavailableError`, `ResourceExhaustedError`, `DeadlineExceededError`,
    `UnauthenticatedError`, `PermissionDeniedError` and `InternalError`.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    @checked
    async def append(
        self,
        session_id: str,
        messages: Iterable[Message],
        *,
        if_revision: int | None = None,
        durability: Durability | str = Durability.PRIMARY,
        timeout: float | None = None,
    ) -> AppendResult:
        """Store the messages of a turn in one session: all of them or none.

        The messages are adjacent in `sequence`, in the order given, so messages
        with equal or unset timestamps are listed in this order. Each message is
        otherwise handled as by `save`. The session is created if it does not
        exist. The client assigns missing ids before the first attempt, so a
        retry cannot store a message twice.

        With `if_revision`, an attempt whose response was lost may already have
        changed the session. If the server refuses a retry, the client therefore
        reads the messages and the session. If all messages are stored as given
        and nothing else has changed in the session since, the append has
        succeeded. Otherwise the refusal is raised; the messages may be stored
        nevertheless.

        Args:
            session_id: The session; at most 256 characters.
            messages: 1 to 1000 messages with different ids; their `session_id`
                must be None or equal. `created_at`, `revision` and `sequence`
                are ignored.
            if_revision: 0 requires that the session is new. Another value must
                be the revision of the session. None appends in any case.
            durability: The stores that must have the write before the call
                returns.
            timeout: Total seconds; None for the client's timeout.

        Returns:
            The session after the append, and the ids and revisions of the
            messages. `created` can be False for a new message if the caller
            chose the id and the response to the first attempt was lost.

        Raises:
            InvalidArgumentError: A message is invalid; `violations` lists every
                problem.
            AlreadyExistsError: `if_revision` is 0 and the session exists.
            AbortedError: `if_revision` is not the revision of the session.
            UnavailableError: Also if `Durability.BOTH` is not reached in time;
                the messages then remain in the store that has them.
        """
        given = tuple(messages)
        sent = convert.messages_to_pb(session_id, given)
        request = pb.AppendRequest(
            session_id=session_id,
            messages=sent,
            durability=storage_pb2.Durability.ValueType(
                member(Durability, durability, "durability")
            ),
        )
        _guard(request, if_revision)
        new = frozenset(p.id for p, m in zip(sent, given, strict=True) if not m.id)
        deadline = self._caller.deadline(timeout)
        history = History()
        try:
            response = await self._append(request, deadline, history)
        except (AlreadyExistsError, AbortedError) as error:
            if not history.uncertain:
                raise
            confirmed = await self._own_turn(request, deadline)
            if confirmed is None:
                raise annotated(error, _APPENDED) from None
            response = confirmed
        return convert.append_result(response, new)

    async def _append(
        self, request: pb.AppendRequest, deadline: Deadline, history: History | None = None
    ) -> pb.AppendResponse:
        return await self._caller.unary(
            "Append", lambda e: e.sessions.Append, request, deadline, history=history
        )

    async def _own_turn(
        self, request: pb.AppendRequest, deadline: Deadline
    ) -> pb.AppendResponse | None:
        """Return the result of a guarded append whose response was lost, or None.

        The revision of a session is that of its last change. It therefore equals the
        greatest revision of the turn's messages only if the turn was the last change. A
        greater one covers changes that the caller has not seen, and must not guard the
        caller's next write.

        Appending the stored messages again under that revision changes nothing and
        returns the stores in which they are durable. The reads see the latest state: a
        replica may be older than the refusal.
        """
        ids = tuple(message.id for message in request.messages)
        try:
            stored = [
                message
                for part in await batch_get(self._caller, ids, deadline, Consistency.LATEST)
                for message in part.messages
            ]
            if len(stored) != len(ids) or not all(map(same_message, request.messages, stored)):
                return None
            session = await self._get(request.session_id, deadline, Consistency.LATEST)
            if session.revision != max(message.revision for message in stored):
                return None
            again = pb.AppendRequest()
            again.CopyFrom(request)
            again.if_revision = session.revision
            return await self._append(again, deadline)
        except (NotFoundError, AbortedError):
            return None

    @checked
    async def get(
        self,
        session_id: str,
        *,
        consistency: Consistency | str | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Read one session, without its messages; `AsyncClient.list` reads those.

        Args:
            session_id: The session; at most 256 characters.
            consistency: Which state the read must see; None: as `reads` of the client.
            timeout: Total seconds; None for the client's timeout.

        Raises:
            NotFoundError: The session does not exist.
            InvalidArgumentError: The id is too long.
        """
        deadline = self._caller.deadline(timeout)
        return convert.session(await self._get(session_id, deadline, chosen(consistency)))

    async def _get(
        self, session_id: str, deadline: Deadline, consistency: Consistency | None
    ) -> pb.Session:
        request = pb.GetSessionRequest(session_id=session_id)
        response = await self._caller.read(
            "GetSession", lambda e: e.sessions.GetSession, request, deadline, consistency
        )
        return response.session

    @checked
    def list(
        self,
        *,
        oldest_first: bool = False,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        provider: str | None = None,
        title_prefix: str | None = None,
        page_size: int = 0,
        page_token: str = "",
        consistency: Consistency | str | None = None,
        timeout: float | None = None,
    ) -> AsyncPager[Session]:
        """List the sessions that match all conditions, the most recently active first.

        The order is that of the last message (of the creation for a session
        without messages), then of the session id. A session that becomes active
        during the listing moves to its beginning, and may then not appear on a
        later page.

        Args:
            oldest_first: The least recently active first.
            start_time: The earliest activity, inclusive: `last_time`, or
                `created_at` without messages.
            end_time: The latest activity, exclusive.
            metadata: Values that the metadata must contain: `{"a": 1}` is
                contained in `{"a": 1, "b": 2}`.
            provider: The provider of at least one message; None for any.
            title_prefix: The beginning of the title, character for character;
                None for any title.
            page_size: Sessions per page: 0 means 50, above 500 means 500.
            page_token: Where to start: the `next_page_token` of a page.
            consistency: Which state each page must see; None: as `reads` of the client.
            timeout: Seconds for each page; None for the client's timeout.

        Raises:
            InvalidArgumentError: A value is too long or cannot be encoded, the
                page size is negative, or the token belongs to another request.
        """
        with naming("metadata"):
            contained = _json.dumps(metadata) if metadata else ""
        request = pb.ListSessionsRequest(
            page_size=page_size,
            oldest_first=oldest_first,
            start_time=None if start_time is None else timestamp_to_pb(start_time, "start_time"),
            end_time=None if end_time is None else timestamp_to_pb(end_time, "end_time"),
            metadata_json=contained,
            provider=provider or "",
            title_prefix=title_prefix or "",
        )

        async def fetch(token: str) -> Page[Session]:
            response = await self._caller.read(
                "ListSessions",
                lambda e: e.sessions.ListSessions,
                with_token(request, token),
                self._caller.deadline(timeout),
                chosen(consistency),
            )
            return convert.session_page(response)

        return AsyncPager(fetch, page_token)

    @checked
    async def update(
        self,
        session_id: str,
        *,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        if_revision: int | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Change the title or the metadata of a session; create it if it does not exist.

        Only the values that are given change. Without any, the call creates the
        session if it does not exist, and returns it.

        Idempotent: the same values again change nothing, so the client retries.
        With `if_revision`, a retry is refused if an earlier attempt, whose
        response was lost, has changed the session; the error then says so.

        Args:
            session_id: The session; at most 256 characters.
            title: The new title, at most 512 characters; "" removes it; None
                keeps it.
            metadata: The new metadata, at most 256 KiB as JSON text; `{}`
                removes it; None keeps it.
            if_revision: 0 requires that the session is new. Another value must
                be the revision of the session. None changes it in any case.
            timeout: Total seconds; None for the client's timeout.

        Raises:
            InvalidArgumentError: A value is invalid, or `if_revision` is not 0
                and there is nothing to change.
            AlreadyExistsError: `if_revision` is 0 and the session exists.
            AbortedError: `if_revision` is not the revision of the session.
        """
        paths = [
            path
            for path, value in (("title", title), ("metadata_json", metadata))
            if value is not None
        ]
        request = pb.UpdateSessionRequest(
            session=convert.session_to_pb(session_id, title, metadata)
        )
        # An empty mask means all fields. A new session has neither title nor metadata, so
        # naming both is right when nothing is given: the guard excludes other sessions.
        request.update_mask.paths.extend(paths or ["title", "metadata_json"])
        deadline = self._caller.deadline(timeout)
        if paths or if_revision is not None:
            if not paths and if_revision:
                raise invalid("if_revision", "is set, but neither title nor metadata is")
            _guard(request, if_revision)
            return await self._update(request, deadline)
        request.if_revision = 0
        try:
            return await self._update(request, deadline)
        except AlreadyExistsError:
            # A replica may not have the session that the primary has found.
            return convert.session(await self._get(session_id, deadline, Consistency.LATEST))

    async def _update(self, request: pb.UpdateSessionRequest, deadline: Deadline) -> Session:
        history = History()
        try:
            response = await self._caller.unary(
                "UpdateSession",
                lambda e: e.sessions.UpdateSession,
                request,
                deadline,
                history=history,
            )
        except (AlreadyExistsError, AbortedError) as error:
            # The revision of the own write is unknown: later messages raise it as well.
            raise (annotated(error, _CHANGED) if history.uncertain else error) from None
        return convert.session(response.session)

    @checked
    async def truncate(
        self,
        session_id: str,
        *,
        drop_last: int | None = None,
        keep_through: str | None = None,
        if_revision: int | None = None,
        timeout: float | None = None,
    ) -> TruncateResult:
        """Remove the last messages of a session: all of them or none.

        Retries depend on the arguments:

        - With `if_revision`, the call is retried: it cannot take effect twice.
          A retry is refused if an earlier attempt, whose response was lost, has
          removed the messages; the error then says so.
        - With `keep_through` alone, the call is retried. If an earlier attempt
          has removed messages, `removed` does not contain them, and `complete`
          is False.
        - With `drop_last` alone, the call is not retried once an attempt may
          have taken effect, because a repeated call would remove other messages.

        Args:
            session_id: The session; at most 256 characters.
            drop_last: Number of last messages to remove, 1 to 1000. If the
                session has fewer, all are removed.
            keep_through: Id of the last message to keep. Those after it in
                chronological order, at most 1000, are removed.
            if_revision: Must be the revision of the session; None for any.
            timeout: Total seconds; None for the client's timeout.

        Returns:
            The removed messages, and the session after the truncation.

        Raises:
            NotFoundError: The session does not exist, or has no message with
                the id `keep_through`.
            AbortedError: `if_revision` is not the revision of the session.
            InvalidArgumentError: Not exactly one of `drop_last` and
                `keep_through` is given, or more than 1000 messages would be
                removed.
            ResourceExhaustedError: The removed messages do not fit into one
                response. Nothing was removed; remove fewer at a time.
        """
        if (drop_last is None) == (keep_through is None):
            raise invalid("drop_last", "give exactly one of drop_last and keep_through")
        request = pb.TruncateSessionRequest(
            session_id=session_id, drop_last=drop_last or 0, keep_through=keep_through or ""
        )
        _guard(request, if_revision)
        repeatable = if_revision is not None or keep_through is not None
        history = History()
        try:
            response = await self._caller.unary(
                "TruncateSession",
                lambda e: e.sessions.TruncateSession,
                request,
                self._caller.deadline(timeout),
                history=history,
                repeatable=repeatable,
            )
        except (AbortedError, NotFoundError) as error:
            raise (annotated(error, _REMOVED) if history.uncertain else error) from None
        except (UnavailableError, DeadlineExceededError) as error:
            if repeatable or not may_have_taken_effect(error):
                raise
            raise annotated(error, _REMOVED_ONCE) from None
        # A guarded attempt that succeeds proves that no earlier one took effect.
        complete = if_revision is not None or not history.uncertain
        return convert.truncate_result(response, complete=complete)

    @checked
    async def delete(
        self,
        session_id: str,
        *,
        if_revision: int | None = None,
        timeout: float = DELETE_TIMEOUT,
    ) -> int:
        """Delete a session with all its messages, of any number.

        No reader sees a message that existed when the call began after it
        returns. If the call is interrupted, the server completes the deletion,
        and the call can be repeated. Messages that are stored in the session
        during the deletion start a new one.

        The client retries. If an earlier attempt, whose response was lost, may
        have deleted the session and a retry does not find it, the deletion has
        succeeded.

        Args:
            session_id: The session; at most 256 characters.
            if_revision: Must be the revision of the session; None for any.
            timeout: Total seconds; a large session takes longer than other
                calls.

        Returns:
            Number of messages that the last attempt deleted: 0 if an earlier
            attempt, whose response was lost, deleted all of them.

        Raises:
            NotFoundError: The session does not exist.
            AbortedError: `if_revision` is not the revision of the session.
            InvalidArgumentError: The id is too long, or `if_revision` is not
                greater than 0.
        """
        request = pb.DeleteSessionRequest(session_id=session_id)
        _guard(request, if_revision)
        history = History()
        try:
            response = await self._caller.unary(
                "DeleteSession",
                lambda e: e.sessions.DeleteSession,
                request,
                self._caller.deadline(timeout),
                history=history,
            )
        except NotFoundError:
            if not history.uncertain:
                raise
            return 0
        except AbortedError as error:
            raise (annotated(error, _DELETED) if history.uncertain else error) from None
        return response.deleted_messages


def _guard(request: Any, revision: int | None) -> None:
    if revision is not None:
        request.if_revision = revision
