"""Real ``sagastore-server`` that reports its resource usage.

As a module it is the server command with an additional thread that answers on a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import socket
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.server_process import ServerProcess

_ROOT = Path(__file__).parents[2]
_SOCKET = "FUZZ_SOCKET"
_MIB = 1024
_CACHE_KIB = 1024
"""Page cache per SQLite connection. Real caches (64 MiB and four times 16) fill up during a
campaign and would hide other growth.
"""


class Vitals(NamedTuple):
    """Resources of the server process."""

    memory: float
    """MiB of anonymous memory, without files and programs (``RssAnon``)."""
    resident: float
    """MiB of resident memory in total."""
    files: int
    threads: int
    tasks: dict[str, int]
    """asyncio tasks by the name of their coroutine."""


class WatchedServer(ServerProcess):
    """Server whose resources can be counted."""

    def __init__(self, sqlite: Path, *, postgres: str | None = None, both: bool = False) -> None:
        """Serve the file ``sqlite``, the database ``postgres``, or both with ``both``."""
        self._socket = sqlite.with_suffix(".socket")
        env = {
            "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
            _SOCKET: str(self._socket),
        }
        if both and postgres is not None:
            env["SAGASTORE_POSTGRES"] = postgres
            super().__init__(sqlite, env=env)
        else:
            super().__init__(sqlite, env=env, postgres=postgres)

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", __name__, "serve", *options]

    def vitals(self) -> Vitals:
        """Count the resources after a garbage collection."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(30)
            asking.connect(str(self._socket))
            tasks = json.loads(asking.makefile().read())
        process = Path(f"/proc/{self.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return Vitals(
            int(status["RssAnon"].split()[0]) / _MIB,
            int(status["VmRSS"].split()[0]) / _MIB,
            len(list((process / "fd").iterdir())),
            int(status["Threads"]),
            tasks,
        )


def _answer(listening: socket.socket, loops: list[asyncio.AbstractEventLoop]) -> None:
    while True:
        asking, _ = listening.accept()
        with asking:
            gc.collect()
            _trim_memory()
            names = Counter(
                getattr(task.get_coro(), "__qualname__", "?")
                for loop in loops
                for task in asyncio.all_tasks(loop)
            )
            asking.sendall(json.dumps(names).encode())


def _trim_memory() -> None:
    """Return free memory to the system; the allocator keeps what the peak load needed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    """Run the command with the additional thread."""
    from sagastore_server import app  # noqa: PLC0415 - in this process only
    from sagastore_server.cli.main import main as run_command  # noqa: PLC0415 - in this process only
    from sagastore_server.sqlite import connection  # noqa: PLC0415

    connection.WRITER_CACHE_KIB = connection.READER_CACHE_KIB = _CACHE_KIB

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.environ.pop(_SOCKET))
    listening.listen()
    loops: list[asyncio.AbstractEventLoop] = []
    threading.Thread(target=_answer, args=(listening, loops), daemon=True).start()
    serve = app.serve

    async def watched(*args: Any) -> None:
        loops.append(asyncio.get_running_loop())
        await serve(*args)

    vars(app)["serve"] = watched
    run_command()


if __name__ == "__main__":
    main()
