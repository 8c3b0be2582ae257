"""Runs a command on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

from tests.cli.command import Sagastore
from tests.support.waiting import eventually

_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


def without_steering(text: str) -> str:
    """Return what was meant for a terminal, without what steers it."""
    return _STEERING.sub("", text).replace("\r\n", "\n")


# Makes the terminal the one that Ctrl+C is typed at.
_PROGRAM = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from sagastore.cli import main
main()
"""


class Terminal:
    """A command whose standard input, output and error are one terminal."""

    def __init__(self, cli: Sagastore, *args: str | Path, columns: int = 100, **env: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *map(str, args)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=cli.env | {"TERM": "xterm-256color"} | env,
            start_new_session=True,
        )
        os.close(slave)
        self._read = bytearray()
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # What Linux says when the other side is closed.
                return
            if not data:
                return
            self._read += data

    @property
    def raw(self) -> str:
        """All that came, with what steers the terminal."""
        return self._read.decode(errors="replace")

    @property
    def text(self) -> str:
        """All that came, without what steers the terminal."""
        return without_steering(self.raw)

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until something is there to be read."""
        eventually(lambda: text in self.text)

    def end(self) -> int:
        """Wait for the end of the command, and return its exit status."""
        status = self.process.wait(timeout=200)
        self._reader.join(timeout=200)
        os.close(self._master)
        assert "Traceback" not in self.text
        return status
