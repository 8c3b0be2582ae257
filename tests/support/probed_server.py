"""Real ``sagastore-server`` that measures how long its event loop is held.

As a module it is the server command with a probe on the event loop, which answers on a socket.
Measured is the processor time of the thread of the event loop from one turn to the next, which
other processes do not affect. Time in which another thread of the server keeps the loop from
running is not included.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.support.server_process import ServerProcess

_ROOT = Path(__file__).parents[2]
_SOCKET = "PROBE_SOCKET"


class ProbedServer(ServerProcess):
    """Server whose event loop is measured."""

    def __init__(self, sqlite: Path, *options: str) -> None:
        """Serve the file ``sqlite``."""
        self._socket = sqlite.with_suffix(".probe")
        path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
        super().__init__(sqlite, *options, env={"PYTHONPATH": path, _SOCKET: str(self._socket)})

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", __name__, "serve", *options]

    def longest_hold(self) -> float:
        """Return the longest time in seconds that the loop was held since the last call."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(30)
            asking.connect(str(self._socket))
            return float(asking.makefile().read())


class _Probe:
    """Runs in each iteration of the event loop."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest = max(self.longest, now - last)
            last = now


def _answer(listening: socket.socket, probe: _Probe) -> None:
    while True:
        asking, _ = listening.accept()
        with asking:
            longest, probe.longest = probe.longest, 0.0
            asking.sendall(str(longest).encode())


def main() -> None:
    """Run the command with the probe."""
    from sagastore_server import app  # noqa: PLC0415 - in this process only
    from sagastore_server.cli.main import main as run_command  # noqa: PLC0415 - in this process only

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.environ.pop(_SOCKET))
    listening.listen()
    probe = _Probe()
    threading.Thread(target=_answer, args=(listening, probe), daemon=True).start()
    serve = app.serve

    async def probed(*args: Any) -> None:
        running = asyncio.ensure_future(probe.run())
        try:
            await serve(*args)
        finally:
            running.cancel()

    vars(app)["serve"] = probed
    run_command()


if __name__ == "__main__":
    main()
