"""Shells in a fresh folder, with the programs of this checkout and free ports."""

from __future__ import annotations

import difflib
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil

from tests.docs.page import Step, masked, matches
from tests.support.server_process import clean_environment

ROOT = Path(__file__).parents[2]
GHZ = "build/tools/bin/ghz"
"""Where `make ghz` puts the load generator."""
STEP_SECONDS = 100
"""Seconds that one step may take, also on a busy machine."""
_LINKED = ("Makefile", "deploy", "docs", "protos", "tests", "tools")
_SHIMS = {
    "sagastore": '-c "from sagastore.cli import main; main()"',
    "sagastore-server": "-P -m sagastore_server",
}


class Finished(NamedTuple):
    """A command that has ended."""

    status: int
    output: str


class Terminal:
    """A shell that runs commands one after the other. Close it in the end."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        """Start it in ``folder``."""
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # A separate job for each background command, so that a signal reaches all its processes.
        self.run("set -m")

    def run(self, command: str) -> Finished:
        """Run a command to its end."""
        assert self._process.stdin is not None
        end = f"end-of-step-{os.urandom(8).hex()}"
        text = f"{{ {command}\n}} </dev/null\nprintf '{end} %s\\n' $?\n"
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()
        output, _, status = self._read_until(end).rpartition(end)
        return Finished(int(status), output)

    def close(self) -> None:
        """Kill the shell and everything that it has started."""
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self._process.pid:
                    process.kill()
        self._process.communicate()

    def _read_until(self, end: str) -> str:
        assert self._process.stdout is not None
        limit, found = time.monotonic() + STEP_SECONDS, b""
        mark = re.compile(rf"{end} \d+\n".encode())
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while not mark.search(found):
                assert ready.select(limit - time.monotonic()), f"no end of:\n{found.decode()}"
                chunk = os.read(self._process.stdout.fileno(), 65536)
                assert chunk, f"the shell ended:\n{found.decode()}"
                found += chunk
        return found.decode()


class Session:
    """Performs the steps of a page. A context manager, which stops everything that it started."""

    def __init__(self, folder: Path, ports: tuple[int, ...], env: Mapping[str, str]) -> None:
        """Prepare ``folder`` as a checkout; each of ``ports`` of the page becomes a free one."""
        self.folder = folder
        self._ports = dict(zip(map(str, ports), map(str, _free_ports(len(ports))), strict=True))
        self._jobs: list[tuple[int, Path]] = []
        _prepare(folder)
        self._environment = clean_environment(folder) | {
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'server'}:{ROOT / 'client'}:{ROOT}",
            "COLUMNS": "150",
            "PYTHONUNBUFFERED": "1",
            **{name: self._with_free_ports(value) for name, value in env.items()},
        }
        self._terminals: dict[str, Terminal] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            while self._jobs:
                self.stop()
        finally:
            for terminal in self._terminals.values():
                terminal.close()

    def perform(self, step: Step) -> list[str]:
        """Do what the step says; return how its output differs from the page.

        Raises:
            AssertionError: A command failed that the page does not show failing.

        """
        if step.kind == "file":
            (self.folder / step.command).write_text(self._with_free_ports(step.shown))
        elif step.kind == "stop":
            self.stop()
        elif step.kind == "wait":
            self._wait_for(step.shown, "")
        elif step.kind == "until":
            # It continues to print.
            output = self.start(step.command, step.shown)
            return _differences(step.command, f"{step.expected}\n...", output)
        else:
            done = self.run(step.command, step.terminal)
            if step.shown:
                return _differences(step.command, step.shown, done.output)
            assert done.status == 0, f"$ {step.command}\n{done.output}"
        return []

    def run(self, command: str, terminal: str = "") -> Finished:
        """Run a command to its end in a terminal."""
        if terminal not in self._terminals:
            self._terminals[terminal] = Terminal(self.folder, self._environment)
        done = self._terminals[terminal].run(self._with_free_ports(command))
        return done._replace(output=self._with_page_ports(done.output))

    def start(self, command: str, text: str) -> str:
        """Start a command in the background; return its output once that has ``text``."""
        log = self.folder / f".output-{os.urandom(4).hex()}"
        log.touch(mode=0o600)
        plain = re.sub(r"\s+#.*$", "", command)
        job = self.run(f"{plain} >{shlex.quote(str(log))} 2>&1 &\necho $!").output
        self._jobs.append((int(job.split()[-1]), log))
        output = self._wait_for(text, command)
        # Without the log, which has another form on a terminal.
        return "\n".join(line for line in output.splitlines() if not line.startswith('{"'))

    def _wait_for(self, text: str, command: str) -> str:
        job, log = self._jobs[-1]
        limit = time.monotonic() + STEP_SECONDS
        while text not in (output := self._with_page_ports(log.read_text())):
            assert _is_running(job), f"$ {command}\n{output}"
            assert time.monotonic() < limit, f"$ {command}\nno {text!r} in:\n{output}"
            time.sleep(0.02)
        return output

    def stop(self) -> None:
        """Stop the newest background command, as Ctrl+C does, and wait for its end."""
        job, log = self._jobs.pop()
        limit = time.monotonic() + STEP_SECONDS
        with suppress(ProcessLookupError):
            os.killpg(job, signal.SIGINT)
        while _is_running(job):
            if time.monotonic() > limit:
                os.killpg(job, signal.SIGKILL)
                raise AssertionError(f"it does not stop:\n{log.read_text()}")
            time.sleep(0.02)

    def _with_free_ports(self, text: str) -> str:
        return _replaced(text, self._ports)

    def _with_page_ports(self, text: str) -> str:
        return _replaced(text, {free: port for port, free in self._ports.items()})


def _is_running(job: int) -> bool:
    """Whether a process of a job runs; the shell may not have collected those that have ended."""
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == job and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _differences(command: str, shown: str, output: str) -> list[str]:
    if matches(shown, output):
        return []
    changes = difflib.unified_diff(
        masked(shown).splitlines(), masked(output).splitlines(), "page", "output", lineterm=""
    )
    return ["\n".join((f"$ {command}", *changes, "in full:", output))]


def _replaced(text: str, ports: dict[str, str]) -> str:
    return re.sub(r"\b\d{4,5}\b", lambda found: ports.get(found[0], found[0]), text)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def load_generator() -> Path | None:
    """Return the program ghz, if it is installed."""
    found = shutil.which("ghz") or ROOT / GHZ
    return Path(found) if Path(found).exists() else None


def _prepare(folder: Path) -> None:
    """Make a folder that commands can use as a checkout, with their environment in ``.venv``."""
    for name in _LINKED:
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    ghz = load_generator()
    if ghz is not None:
        (folder / GHZ).parent.mkdir(parents=True)
        (folder / GHZ).symlink_to(ghz)
    (folder / "bin").mkdir()
    for name, arguments in _SHIMS.items():
        _write_program(folder / "bin" / name, f'exec {sys.executable} {arguments} "$@"')
    # A script finds its data beside itself.
    (folder / "scripts").mkdir()
    for script in (ROOT / "scripts").glob("*.py"):
        (folder / "scripts" / script.name).write_bytes(script.read_bytes())
    # The environment is not made again.
    _write_program(
        folder / "bin" / "make",
        'exec /usr/bin/env -u MAKEFLAGS -u MAKELEVEL PATH="${PATH#*:}" make -o .venv/.stamp-run '
        '-o .venv/.stamp-dev "$@"',
    )


def _write_program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o700)
