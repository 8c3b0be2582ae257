"""A server whose event loop stops for good at SIGUSR1.

Usage: ``python -m tests.telemetry.stuck_server …``.

Live means that the loop has gone round within half a second here, not ten.
"""

from __future__ import annotations

import signal
import threading

from sagastore_server.cli.main import main
from sagastore_server.telemetry import readiness


def stop(*_: object) -> None:
    """Hold the main thread, and the event loop with it."""
    threading.Event().wait()


if __name__ == "__main__":
    readiness.LIVE_WITHIN = 0.7
    signal.signal(signal.SIGUSR1, stop)
    main()
