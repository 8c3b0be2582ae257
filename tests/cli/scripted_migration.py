"""A MigrationService with scripted responses, over a real socket.

The real server cannot produce every state that the command must display.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.rpc import error_details_pb2

from sagastore.v1 import migration_pb2 as pb
from sagastore.v1 import migration_pb2_grpc
from tests.client.failing.scripted import error_info, status_bytes
from tests.support.ports import ReservedPort

Context = grpc.ServicerContext


def blockers(*found: tuple[str, str]) -> error_details_pb2.PreconditionFailure:
    """Return the details of a refusal."""
    failure = error_details_pb2.PreconditionFailure()
    for reason, detail in found:
        failure.violations.add(type=reason, subject="migration", description=detail)
    return failure


def abort(context: Context, code: grpc.StatusCode, text: str, *details: Any) -> NoReturn:
    """End a call with an error, with details as the real server sends them."""
    data = status_bytes(code, text, error_info("BLOCKED"), *details)
    context.set_trailing_metadata((("grpc-status-details-bin", data),))
    context.abort(code, text)
    raise AssertionError


class ScriptedMigration(migration_pb2_grpc.MigrationServiceServicer):
    """A migration service with a scripted state; ``requests`` has the requests received."""

    def __init__(self) -> None:
        self._reserved = ReservedPort()
        self.address = self._reserved.address
        self.requests: list[Any] = []
        self.refuse: Callable[[Context], None] = lambda context: None
        self.verification: list[pb.VerifyResponse] = []
        self._state = pb.Migration(phase=pb.PHASE_SQLITE_ONLY, epoch=1)
        self._changed = threading.Condition()
        self._version = 0
        self._stopping = False
        self._server: grpc.Server | None = None

    @property
    def state(self) -> pb.Migration:
        """The state of the migration; setting it notifies all watchers."""
        return self._state

    @state.setter
    def state(self, state: pb.Migration) -> None:
        with self._changed:
            self._state = state
            self._version += 1
            self._changed.notify_all()

    def start(self) -> None:
        """Serve, on the same port as before."""
        self._stopping = False
        self._server = server = grpc.server(ThreadPoolExecutor(8))
        migration_pb2_grpc.add_MigrationServiceServicer_to_server(self, server)
        server.add_insecure_port(self.address)
        server.start()

    def stop(self) -> None:
        """Be gone."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        assert self._server is not None
        self._server.stop(None).wait()

    def close(self) -> None:
        """Stop, and give up the port."""
        self.stop()
        self._reserved.close()

    def GetMigration(self, request: Any, context: Context) -> pb.GetMigrationResponse:
        return pb.GetMigrationResponse(migration=self.state)

    def WatchMigration(self, request: Any, context: Context) -> Iterator[pb.WatchMigrationResponse]:
        self.requests.append(request)
        while context.is_active() and not self._stopping:
            with self._changed:
                version, state = self._version, self._state
            yield pb.WatchMigrationResponse(migration=state)
            with self._changed:
                if self._version == version and not self._stopping:
                    self._changed.wait(0.2)

    def ChangePhase(self, request: Any, context: Context) -> pb.ChangePhaseResponse:
        self.requests.append(request)
        self.refuse(context)
        if not request.dry_run:
            after = pb.Migration()
            after.CopyFrom(self.state)
            after.phase = request.phase
            after.epoch += 1
            self.state = after
        return pb.ChangePhaseResponse(migration=self.state)

    def ControlBackfill(self, request: Any, context: Context) -> pb.ControlBackfillResponse:
        self.requests.append(request)
        self.refuse(context)
        return pb.ControlBackfillResponse(migration=self.state)

    def ListQuarantine(self, request: Any, context: Context) -> pb.ListQuarantineResponse:
        return pb.ListQuarantineResponse()

    def Verify(self, request: Any, context: Context) -> Iterator[pb.VerifyResponse]:
        self.requests.append(request)
        self.refuse(context)
        yield from self.verification


@contextmanager
def scripted_migration() -> Iterator[ScriptedMigration]:
    """Serve a script for as long as the context lasts."""
    script = ScriptedMigration()
    script.start()
    try:
        yield script
    finally:
        script.close()
