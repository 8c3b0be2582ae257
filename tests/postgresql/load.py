"""Load on a server from several threads."""

from __future__ import annotations

import itertools
import threading
from types import TracebackType
from typing import Self

from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.support.server_process import ServerProcess


class Load:
    """Threads with a channel each, which call a server until the end of the context."""

    def __init__(self, server: ServerProcess, threads: int) -> None:
        """Prepare the load on ``server``."""
        self._server = server
        self.stopping = threading.Event()
        """Set at the end."""
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join()

    def call(self, storage: StorageServiceStub, thread: int, number: int) -> None:
        """Make the calls of turn ``number``; subclasses override it."""
        raise NotImplementedError

    def _run(self, thread: int) -> None:
        with self._server.channel() as channel:
            storage = StorageServiceStub(channel)
            for number in itertools.count(1):
                if self.stopping.is_set():
                    return
                self.call(storage, thread, number)
