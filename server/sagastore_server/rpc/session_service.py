"""SessionService: the servicer of sagastore/v1/session.proto, over any `StorageBackend`."""

from __future__ import annotations

from sagastore.v1 import session_pb2
from sagastore_server.rpc import consistency, convert, page_tokens, session_requests
from sagastore_server.rpc.handlers import TimeLeft, timed
from sagastore_server.rpc.ids import IdSource
from sagastore_server.rpc.offload import append_cost, parsed
from sagastore_server.rpc.storage_service import durability_timeout
from sagastore_server.runtime.session_deletion import SessionDeletion
from sagastore_server.runtime.worker_pool import SHORT, WorkerPool
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.limits import MAX_PAGE_BYTES
from sagastore_server.storage.sessions import Session, SessionPosition, SessionScan
from sagastore_server.storage.validation import MAX_BATCH


class SessionServicer:
    """Implements each RPC as the method of its name; `handlers` connects it to gRPC."""

    def __init__(
        self, backend: StorageBackend, deletion: SessionDeletion, worker_pool: WorkerPool
    ) -> None:
        """Serve from ``backend``; ``deletion`` deletes whole sessions of it.

        Large requests are parsed in ``worker_pool``.
        """
        self._backend = backend
        self._worker_pool = worker_pool
        self._deletion = deletion
        self._ids = IdSource()

    @timed
    async def Append(
        self, request: session_pb2.AppendRequest, time_left: TimeLeft
    ) -> session_pb2.AppendResponse:
        """Store the messages of a turn."""
        wanted = await self._parse_append(request)
        within = durability_timeout(time_left()) if wanted.on_all_stores else None
        result = await self._backend.append(*wanted[:3], within)
        response = session_pb2.AppendResponse(
            durable_on=[convert.STORES[store] for store in result.durable_on]
        )
        _fill(response.session, result.session)
        for one in result.saved:
            response.saved.add(
                id=one.id, revision=one.revision, sequence=one.sequence, created=one.created
            )
        return response

    async def _parse_append(self, request: session_pb2.AppendRequest) -> session_requests.Append:
        cost = append_cost(request)
        if cost < SHORT or len(request.messages) > MAX_BATCH:
            return session_requests.append(request, self._ids.new)
        new_ids = [self._ids.new() for message in request.messages if not message.id]
        next_id = iter(new_ids).__next__
        return await parsed(self._worker_pool, cost, session_requests.append, request, next_id)

    async def GetSession(
        self, request: session_pb2.GetSessionRequest
    ) -> session_pb2.GetSessionResponse:
        """Read one session."""
        found = await self._backend.get_session(session_requests.session_id(request))
        response = session_pb2.GetSessionResponse()
        _fill(response.session, found)
        return response

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest
    ) -> session_pb2.ListSessionsResponse:
        """Read a page of sessions."""
        cost = len(request.metadata_json)
        wanted = await parsed(self._worker_pool, cost, session_requests.list_sessions, request)
        key = page_tokens.request_key("ListSessions", *wanted.fingerprint)
        after = None
        if request.page_token:
            position = consistency.cursor_of(key, request.page_token, "page_token", (int, str))
            after = SessionPosition(*position)  # type: ignore[arg-type]
        scan = SessionScan(wanted.oldest_first, wanted.page_size, after)
        page = await self._backend.list_sessions(wanted.criteria, scan)
        response = session_pb2.ListSessionsResponse()
        for session in page.sessions:
            _fill(response.sessions.add(), session)
        if page.more:
            response.next_page_token = consistency.token_of(key, page.sessions[-1].position)
        return response

    async def UpdateSession(
        self, request: session_pb2.UpdateSessionRequest
    ) -> session_pb2.UpdateSessionResponse:
        """Change title or metadata of a session, or create it."""
        cost = len(request.session.metadata_json)
        wanted = await parsed(self._worker_pool, cost, session_requests.update, request)
        found = await self._backend.update_session(*wanted)
        response = session_pb2.UpdateSessionResponse()
        _fill(response.session, found)
        return response

    async def TruncateSession(
        self, request: session_pb2.TruncateSessionRequest
    ) -> session_pb2.TruncateSessionResponse:
        """Remove the last messages of a session."""
        wanted = session_requests.truncate(request)
        result = await self._backend.truncate_session(
            wanted.session_id,
            drop_last=wanted.drop_last,
            keep_through=wanted.keep_through,
            if_revision=wanted.if_revision,
            most_bytes=MAX_PAGE_BYTES,
        )
        response = session_pb2.TruncateSessionResponse()
        for message in result.removed:
            convert.fill(response.removed.add(), message)
        _fill(response.session, result.session)
        return response

    async def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest
    ) -> session_pb2.DeleteSessionResponse:
        """Delete a session with all its messages."""
        deleted = await self._deletion.delete(*session_requests.delete(request))
        return session_pb2.DeleteSessionResponse(deleted_messages=deleted)


def _fill(target: session_pb2.Session, source: Session) -> None:
    """Write a stored session into an empty session of a response."""
    target.session_id = source.session_id
    if source.title:
        target.title = source.title
    target.metadata_json = source.metadata
    target.revision = source.revision
    fill_time = convert.fill_time
    fill_time(target.created_at, source.created_at)
    fill_time(target.updated_at, source.updated_at)
    first, last = source.first_time, source.last_time
    if first is None or last is None:
        return
    fill_time(target.first_time, first)
    fill_time(target.last_time, last)
    target.message_count = source.message_count
    for name, _ in source.providers:
        target.providers.append(name)
    target.first_message = source.first_message
    target.last_sequence = source.last_sequence
