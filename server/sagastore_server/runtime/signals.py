"""Signals that ask the server to stop."""

from __future__ import annotations

import asyncio
import signal

_NAMES = ("SIGINT", "SIGTERM", "SIGBREAK")
"""SIGBREAK is Ctrl+Break, and how one process stops another, on Windows."""


class StopSignals:
    """The first signal asks for an orderly stop, the second for a quick one.

    From the third on, signals do what they do by default: end the process.
    """

    def __init__(self) -> None:
        """Listen from now on. Needs the running event loop, in the main thread."""
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
        for number in self._numbers:
            self._listen(number)

    def _listen(self, number: signal.Signals) -> None:
        try:
            self._loop.add_signal_handler(number, self._came)
        except NotImplementedError:  # on Windows
            signal.signal(number, lambda *_: self._loop.call_soon_threadsafe(self._came))

    def _came(self) -> None:
        if not self.first.is_set():
            self.first.set()
            return
        self.second.set()
        self._forget()

    def _forget(self) -> None:
        for number in self._numbers:
            try:
                self._loop.remove_signal_handler(number)
            except NotImplementedError:  # on Windows
                signal.signal(number, signal.SIG_DFL)
