"""Real ``sagastore-server`` that kills itself with SIGKILL during a reanalysis.

As a module it is the command; ``CRASH_AFTER`` is the number of steps after which it ends.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from sagastore_server.cli.main import main as run_command
from sagastore_server.postgresql import reanalysis as postgresql_reanalysis
from sagastore_server.sqlite import reanalysis as sqlite_reanalysis
from tests.support.server_process import ServerProcess

_ROOT = Path(__file__).parents[2]
STEP = 20
"""Messages of a step."""


class DyingServer(ServerProcess):
    """Server that ends after some steps of a reanalysis."""

    def __init__(self, sqlite: Path, steps: int, **stores: Any) -> None:
        path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
        super().__init__(
            sqlite, env={"PYTHONPATH": path, "CRASH_AFTER": str(steps)}, postgres=stores.get("dsn")
        )

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", __name__, "serve", *options]


def main() -> None:
    """Run the command; the process ends within the step after the chosen number of steps."""
    steps = int(os.environ["CRASH_AFTER"])

    def counted(step: Any) -> Any:
        async def run(*arguments: Any) -> Any:
            nonlocal steps
            if steps == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            steps -= 1
            return await step(*arguments)

        return run

    for module in (sqlite_reanalysis, postgresql_reanalysis):
        vars(module)["ROWS"] = STEP
        setattr(module.Reanalyser, "_step", counted(module.Reanalyser._step))  # noqa: B010 - of a class
    run_command()


if __name__ == "__main__":
    main()
