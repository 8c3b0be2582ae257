"""Real ``sagastore-server`` that kills itself with SIGKILL at a chosen boundary.

As a module it is the command with marked boundaries: ``CRASH_TRACE`` names the file for the trace,
``CRASH_AT`` the boundary at which the process ends.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.support.server_process import ServerProcess

_ROOT = Path(__file__).parents[2]


class CrashingServer(ServerProcess):
    """Server with both stores; each started process ends at the next of some boundaries."""

    def __init__(
        self, sqlite: Path, dsn: str, trace: Path, points: tuple[str, ...] = (), **env: str
    ) -> None:
        """Create it; ``points`` are the boundaries at which the first, second, … process ends."""
        settings = env | {
            "SAGASTORE_POSTGRES": dsn,
            "SAGASTORE_POSTGRES_POOL_MIN": "1",
            "SAGASTORE_SHADOW_SHARE": "1.0",
            "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
            "CRASH_TRACE": str(trace),
        }
        super().__init__(sqlite, env=settings)
        self.trace = trace
        self.point = ""
        """Boundary at which the current process ends; empty: none."""
        self._points = list(points)

    @property
    def killed_itself(self) -> bool:
        """Whether the last process ended by SIGKILL."""
        return self._process is not None and self._process.poll() == -signal.SIGKILL

    def spawn(self, *, bare: bool = False) -> None:
        """Start the process without waiting for it."""
        self.point = self._env["CRASH_AT"] = self._points.pop(0) if self._points else ""
        with self.trace.open("a") as trace:
            trace.write(f"-- a process that ends at: {self.point}\n")
        super().spawn(bare=bare)

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", __name__, "serve", *options]


def main() -> None:
    """Run the command with marked boundaries."""
    from sagastore_server.cli.main import main as run_command  # noqa: PLC0415 - in this process only
    from tests.support.crash_boundaries import Boundaries, install  # noqa: PLC0415

    install(Boundaries(Path(os.environ["CRASH_TRACE"]), os.environ["CRASH_AT"]))
    run_command()


if __name__ == "__main__":
    main()
