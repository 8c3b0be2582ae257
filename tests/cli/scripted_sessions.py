"""SessionService and FileService with scripted contents, over a real socket.

The states that the commands must display are set directly, and refusals come when a test
needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from sagastore.v1 import (
    file_pb2,
    file_pb2_grpc,
    message_pb2,
    session_pb2,
    session_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
)
from tests.client.failing.scripted import error_info, status_bytes

Context = grpc.ServicerContext


def fail(context: Context, code: grpc.StatusCode, text: str) -> None:
    """End a call with an error, with details as the real server sends them."""
    data = status_bytes(code, text, error_info("TEST"))
    context.set_trailing_metadata((("grpc-status-details-bin", data),))
    context.abort(code, text)


class ScriptedSessions(
    session_pb2_grpc.SessionServiceServicer,
    file_pb2_grpc.FileServiceServicer,
    storage_pb2_grpc.StorageServiceServicer,
):
    """Sessions, messages and files by id; ``requests`` has the requests received."""

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[Any] = []
        self.sessions: dict[str, session_pb2.Session] = {}
        self.messages: list[message_pb2.Message] = []
        self.files: dict[str, file_pb2.File] = {}
        self.conflicts = 0
        """Number of updates to refuse because the session has changed."""

    def _find(self, kept: dict[str, Any], id: str, context: Context) -> Any:
        if id not in kept:
            fail(context, grpc.StatusCode.NOT_FOUND, f"nothing has the id {id!r}")
        return kept[id]

    def GetSession(self, request: Any, context: Context) -> session_pb2.GetSessionResponse:
        self.requests.append(request)
        found = self._find(self.sessions, request.session_id, context)
        return session_pb2.GetSessionResponse(session=found)

    def ListSessions(self, request: Any, context: Context) -> session_pb2.ListSessionsResponse:
        self.requests.append(request)
        return session_pb2.ListSessionsResponse(sessions=self.sessions.values())

    def UpdateSession(self, request: Any, context: Context) -> session_pb2.UpdateSessionResponse:
        self.requests.append(request)
        found = self._find(self.sessions, request.session.session_id, context)
        if self.conflicts:
            self.conflicts -= 1
            fail(context, grpc.StatusCode.ABORTED, "the revision is another")
        found.title = request.session.title
        return session_pb2.UpdateSessionResponse(session=found)

    def DeleteSession(self, request: Any, context: Context) -> session_pb2.DeleteSessionResponse:
        self.requests.append(request)
        found = self._find(self.sessions, request.session_id, context)
        del self.sessions[request.session_id]
        return session_pb2.DeleteSessionResponse(deleted_messages=found.message_count)

    def List(self, request: Any, context: Context) -> storage_pb2.ListResponse:
        self.requests.append(request)
        found = self.messages[::-1] if request.newest_first else self.messages
        return storage_pb2.ListResponse(messages=found)

    def ListFiles(self, request: Any, context: Context) -> file_pb2.ListFilesResponse:
        self.requests.append(request)
        return file_pb2.ListFilesResponse(files=self.files.values())

    def GetFile(self, request: Any, context: Context) -> file_pb2.GetFileResponse:
        return file_pb2.GetFileResponse(file=self._find(self.files, request.id, context))

    def SaveFile(self, request: Any, context: Context) -> file_pb2.SaveFileResponse:
        self.requests.append(request)
        self.files[request.file.id] = request.file
        return file_pb2.SaveFileResponse(
            id=request.file.id, revision=1, created=True, durable_on=[storage_pb2.STORE_SQLITE]
        )

    def DeleteFile(self, request: Any, context: Context) -> file_pb2.DeleteFileResponse:
        self._find(self.files, request.id, context)
        del self.files[request.id]
        return file_pb2.DeleteFileResponse()


@contextmanager
def scripted_sessions() -> Iterator[ScriptedSessions]:
    """Serve a script for as long as the context lasts."""
    script = ScriptedSessions()  # type: ignore[abstract]
    server = grpc.server(ThreadPoolExecutor(4))
    session_pb2_grpc.add_SessionServiceServicer_to_server(script, server)
    file_pb2_grpc.add_FileServiceServicer_to_server(script, server)
    storage_pb2_grpc.add_StorageServiceServicer_to_server(script, server)
    script.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield script
    finally:
        server.stop(None).wait()
