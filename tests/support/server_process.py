"""A real `sagastore-server serve`, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

STARTUP_SECONDS = 60
"""How long a start, or an end, may take before a test fails; on a busy machine too."""

_COMPILED = Path(__file__).parents[2] / ".pytest_cache" / "compiled"


class ServerProcess:
    """Starts the command, reads its log, and ends it.

    ``address`` is known, and calls are served, once ``start`` has returned. A
    ``restart`` keeps the port, so that clients find the server again.
    """

    def __init__(
        self,
        sqlite: Path,
        *options: str,
        env: dict[str, str] | None = None,
        postgres: str | None = None,
    ) -> None:
        """Prepare to serve the file ``sqlite``, or the database ``postgres`` instead."""
        self.sqlite = sqlite
        self.address = "127.0.0.1:0"
        self.events: list[dict[str, Any]] = []
        self.stderr: list[str] = []
        self._options = options
        self._file = () if postgres is not None else ("--sqlite", str(sqlite))
        # Without metrics, unless a test asks for them: one port for all is not enough.
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
        """The process that runs now, or ran last."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> ServerProcess:
        """Start it and wait until it serves."""
        self.spawn()
        serving = self.wait_for_event("serving")
        self.address = serving["address"]
        return self

    def spawn(self, *, bare: bool = False) -> None:
        """Start it, and do not wait; ``bare`` gives it no address and no file."""
        assert not self.alive
        self.stderr, self.events, self._log_ended = [], [], False
        usual = () if bare else ("--listen", self.address, *self._file)
        self._process = subprocess.Popen(
            self.command(*usual, *self._options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=self._env,
            # A group of its own, so that Ctrl+Break reaches nobody else.
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def command(self, *options: str) -> list[str]:
        """Return the command line."""
        return serve_command(*options)

    def wait_for_event(self, name: str) -> dict[str, Any]:
        """Wait until the log has the event ``name``, and return it."""

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
        """Wait until it has ended, and return its exit status."""
        assert self._process is not None
        assert self._reader is not None
        status = self._process.wait(STARTUP_SECONDS)
        self._reader.join(STARTUP_SECONDS)
        assert self._process.stderr is not None
        self._process.stderr.close()
        return status

    def ask_to_stop(self) -> None:
        """Send what an orderly stop begins with: SIGTERM, or Ctrl+Break on Windows."""
        assert self._process is not None
        if sys.platform == "win32":
            self._process.send_signal(signal.CTRL_BREAK_EVENT)
        else:
            self._process.send_signal(signal.SIGTERM)

    def terminate(self) -> int:
        """Stop it in an orderly way, wait, and return its exit status."""
        self.ask_to_stop()
        return self.wait()

    def kill9(self) -> None:
        """End it at whatever instruction it is."""
        assert self._process is not None
        self._process.kill()
        self.wait()

    def restart(self) -> ServerProcess:
        """End it, unless it has ended, and start it again on the same file and port."""
        if self.alive:
            self.terminate()
        return self.start()

    def close(self) -> None:
        """Leave nothing behind, of one that has ended by itself neither."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def channel(self, *options: tuple[str, Any]) -> grpc.Channel:
        """Return a channel to it; the caller closes it."""
        unlimited = ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)
        return grpc.insecure_channel(self.address, options=(*unlimited, *options))

    def _read_log(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        for line in self._process.stderr:
            event = _parsed(line)
            with self._changed:
                self.stderr.append(line.rstrip("\n"))
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
    """Return this environment without settings of ours, and with another home.

    Where Python was told not to keep compiled code, servers keep theirs in a place
    of their own: compiling everything again takes most of a start.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SAGASTORE_")
    }
    if environment.pop("PYTHONDONTWRITEBYTECODE", None):
        environment["PYTHONPYCACHEPREFIX"] = str(_COMPILED)
    return environment | {"HOME": str(home), "XDG_DATA_HOME": str(home / "data")}


@contextmanager
def serving(sqlite: Path, *options: str) -> Iterator[ServerProcess]:
    """Run a server for as long as the context lasts."""
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
