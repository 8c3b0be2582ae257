"""Real `sagastore-server serve` in a separate process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc

from tests.support.ports import ReservedPort

STARTUP_SECONDS = 120
"""Seconds that a start or stop may take before a test fails, also on a busy machine."""

_ANY_PORT = "127.0.0.1:0"
_COMPILED = Path(__file__).parents[2] / ".pytest_cache" / "compiled"


class ServerProcess:
    """Starts the command, reads its log, and stops it.

    After ``start`` has returned, ``address`` is known and calls are served. ``restart`` keeps the
    port, so that clients reconnect; no other process is given it in between.
    """

    def __init__(
        self,
        sqlite: Path,
        *options: str,
        env: dict[str, str] | None = None,
        postgres: str | None = None,
    ) -> None:
        """Create it; it serves the file ``sqlite``, or the database ``postgres`` instead."""
        self.sqlite = sqlite
        self.address = _ANY_PORT
        self.events: list[dict[str, Any]] = []
        self.stderr: list[str] = []
        self._options = options
        self._file = () if postgres is not None else ("--sqlite", str(sqlite))
        # Without metrics unless a test requests them, because all servers would share the default
        # port.
        self._env = clean_environment(sqlite.parent) | {"SAGASTORE_OPS_LISTEN": "off"}
        self._env |= env or {}
        if postgres is not None:
            self._env["SAGASTORE_POSTGRES"] = postgres
        self._changed = threading.Condition()
        self._log_ended = True
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """PID of the current or last process."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the process and wait until it serves."""
        self.spawn()
        serving = self.wait_for_event("serving")
        self.address = serving["address"]
        return self

    def spawn(self, *, bare: bool = False) -> None:
        """Start the process without waiting; ``bare`` passes no address and no file."""
        assert not self.alive
        self.stderr, self.events, self._log_ended = [], [], False
        if self.address == _ANY_PORT and not bare and sys.platform == "linux":
            reserved = ReservedPort()
            weakref.finalize(self, reserved.close)
            self.address = reserved.address
        usual = () if bare else ("--listen", self.address, *self._file)
        self._process = subprocess.Popen(
            self.command(*usual, *self._options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=self._env,
            # A separate process group, so that Ctrl+Break reaches no other process.
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def command(self, *options: str) -> list[str]:
        return serve_command(*options)

    def wait_for_event(self, name: str) -> dict[str, Any]:
        """Wait until the log contains the event ``name``; return it."""

        def found() -> dict[str, Any] | None:
            return next((event for event in self.events if event.get("event") == name), None)

        with self._changed:
            done = self._changed.wait_for(lambda: found() or self._log_ended, STARTUP_SECONDS)
            event = found()
        if event is None:
            state = "ended" if done else "still runs"
            log = "\n".join(self.stderr)
            raise AssertionError(f"the server {state} without the event {name!r}:\n{log}")
        return event

    def wait(self) -> int:
        """Wait for the end of the process; return its exit status."""
        assert self._process is not None
        assert self._reader is not None
        status = self._process.wait(STARTUP_SECONDS)
        self._reader.join(STARTUP_SECONDS)
        assert self._process.stderr is not None
        self._process.stderr.close()
        return status

    def ask_to_stop(self) -> None:
        """Request a graceful stop: SIGTERM, or Ctrl+Break on Windows."""
        assert self._process is not None
        if sys.platform == "win32":
            self._process.send_signal(signal.CTRL_BREAK_EVENT)
        else:
            self._process.send_signal(signal.SIGTERM)

    def terminate(self) -> int:
        """Stop the process gracefully, wait, and return its exit status."""
        self.ask_to_stop()
        return self.wait()

    def kill9(self) -> None:
        """Kill the process."""
        assert self._process is not None
        self._process.kill()
        self.wait()

    def restart(self) -> Self:
        """Stop the process if it runs, and restart it on the same file and port."""
        if self.alive:
            self.terminate()
        return self.start()

    def close(self) -> None:
        """Stop the process and release all resources."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def channel(self, *options: tuple[str, Any]) -> grpc.Channel:
        """Return a channel to the server; the caller closes it."""
        unlimited = ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)
        return grpc.insecure_channel(self.address, options=(*unlimited, *options))

    def note(self, line: str) -> None:
        """Keep a line of the log. Called by the thread that reads the log."""
        self.stderr.append(line)

    def _read_log(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        for line in self._process.stderr:
            event = _parsed(line)
            with self._changed:
                self.note(line.rstrip("\n"))
                if event is not None:
                    self.events.append(event)
                self._changed.notify_all()
        with self._changed:
            self._log_ended = True
            self._changed.notify_all()


def serve_command(*options: str) -> list[str]:
    """Return the command line of ``sagastore-server serve``."""
    return [sys.executable, "-m", "sagastore_server", "serve", *options]


def clean_environment(home: Path) -> dict[str, str]:
    """Return the environment without SagaStore settings and with another home.

    If Python must not write compiled code, servers use a separate cache folder, because compilation
    takes most of a start.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SAGASTORE_")
    }
    if environment.pop("PYTHONDONTWRITEBYTECODE", None):
        environment["PYTHONPYCACHEPREFIX"] = str(_COMPILED)
    return environment | {"HOME": str(home), "XDG_DATA_HOME": str(home / "data")}


@contextmanager
def serving(sqlite: Path, *options: str) -> Iterator[ServerProcess]:
    """Run a server for the duration of the context."""
    server = ServerProcess(sqlite, *options)
    try:
        yield server.start()
    finally:
        server.close()


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
