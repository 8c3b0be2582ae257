"""Signals that ask the server to stop."""

from __future__ import annotations

import asyncio
import signal

_NAMES = ("SIGINT", "SIGTERM", "SIGBREAK")
"""On Windows SIGBREAK is sent by Ctrl+Break, and by a process that stops another."""


class StopSignals:
    """Events for a graceful stop, at the first signal, and a fast one, at the second.

    From the third on, signals have their default effect: the process ends.
    """

    def __init__(self) -> None:
        """Install the handlers. Needs the running event loop, in the main thread."""
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._received = 0
        self._loop = asyncio.get_running_loop()
        self._numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
        for number in self._numbers:
            self._install(number)

    def _install(self, number: signal.Signals) -> None:
        try:
            self._loop.add_signal_handler(number, self._on_signal)
        except NotImplementedError:  # on Windows
            signal.signal(number, lambda *_: self._loop.call_soon_threadsafe(self._on_signal))

    def _on_signal(self) -> None:
        # Counted here: a subclass may set the events for other reasons.
        self._received += 1
        self.first.set()
        if self._received > 1:
            self.second.set()
            self._restore()

    def _restore(self) -> None:
        for number in self._numbers:
            try:
                self._loop.remove_signal_handler(number)
            except NotImplementedError:  # on Windows
                signal.signal(number, signal.SIG_DFL)
