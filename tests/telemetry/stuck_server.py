"""A server whose event loop hangs forever after SIGUSR1.

Usage: ``python -m tests.telemetry.stuck_server …``.

Its limit for liveness is 0.7 seconds instead of 10.
"""

from __future__ import annotations

import signal
import threading

from sagastore_server.cli.main import main
from sagastore_server.telemetry import readiness


def stop(*_: object) -> None:
    """Block the main thread, and so the event loop."""
    threading.Event().wait()


if __name__ == "__main__":
    readiness.LIVE_WITHIN = 0.7
    signal.signal(signal.SIGUSR1, stop)
    main()
