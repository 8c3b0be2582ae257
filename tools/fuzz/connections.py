"""Fuzzer of connection strings: real settings, real ``serve``, real connections.

    python -m tools.fuzz.connections [--count N] [--seed TEXT]
    python -m tools.fuzz.connections --seed TEXT --only NUMBER

Each input is given to ``sagastore-server config``, ``config --check`` and ``serve``, as a variable,
in a file or as an option. Its addresses are those of a PostgreSQL that wants another password and
offers no TLS, of a peer that is no PostgreSQL, and of a closed port, so no server can start.
Checked: no traceback, one line that says why, no exit status 0 of ``serve``, and no part of the
password in any output.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import typer

from tests.support.postgres import PostgresProcess, postgres_process
from tools.fuzz.connection_inputs import ConnectionInput, Places, made

_PATIENCE = 60.0
"""Seconds after which a server that runs is stopped; that is a failure."""


class Runner:
    """Runs the commands in this process, one after the other, and checks what they print."""

    def __init__(self, folder: Path) -> None:
        """Create a runner with its files in ``folder``."""
        self._folder = folder
        self.statuses: Counter[str] = Counter()

    def complaints(self, one: ConnectionInput) -> list[str]:
        """Run the commands with an input and return what is wrong."""
        found = []
        for command in (["config", "--json"], ["config", "--check"], ["serve"]):
            status, output = self._run(one, command)
            self.statuses[f"{' '.join(command)}: {status}"] += 1
            found += [f"{' '.join(command)}: {what}" for what in _wrong(one, status, output)]
            if command == ["serve"] and status == 0:
                found.append("serve: exit status 0 though nothing was served")
        return found

    def _run(self, one: ConnectionInput, command: list[str]) -> tuple[int, str]:
        environment = {
            "HOME": str(self._folder), "PATH": os.environ["PATH"], "COLUMNS": "4000",
            "SAGASTORE_LISTEN": "127.0.0.1:0", "SAGASTORE_OPS_LISTEN": "off",
            "SAGASTORE_LOG_LEVEL": "debug", **one.variables,
        }  # fmt: skip
        options: list[str] = []
        if one.place == "environment":
            environment["SAGASTORE_POSTGRES"] = one.text.replace("\x00", "")
        elif one.place == "file":
            file = self._folder / "saga.toml"
            file.write_text(f"postgres = {json.dumps(one.text)}\n", encoding="utf-8")
            options = ["--config", str(file)]
        else:
            options = [f"--postgres={one.text}"]
        return _in_process([*command, *options], environment)


@lru_cache(maxsize=1)
def _command() -> Any:
    """Return the command, built once, because that takes longer than most runs of it."""
    from sagastore_server.cli.main import cli  # noqa: PLC0415 - takes a second

    return typer.main.get_command(cli)


def _in_process(arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run the command with its own environment; return its exit status and all of its output."""
    command = _command()
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    stop = threading.Timer(_PATIENCE, lambda: os.kill(os.getpid(), signal.SIGTERM))
    stop.daemon = True
    stop.start()
    try:
        with _captured() as output:
            try:
                command.main(arguments, prog_name="sagastore-server")
                status = 0
            except SystemExit as exc:
                status = exc.code if isinstance(exc.code, int) else 0
            except BaseException as exc:  # noqa: BLE001 - what a user would see as a traceback
                print(f"Traceback: {exc!r}", file=sys.stderr)
                status = 70
    finally:
        stop.cancel()
        os.environ.clear()
        os.environ.update(before)
    return status, output.getvalue()


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """Capture both outputs of this process, those of libraries in C included."""
    text = io.StringIO()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield text
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, number)
                os.close(saved)
            file.seek(0)
            text.write(file.read())


def _wrong(one: ConnectionInput, status: int, output: str) -> Iterator[str]:
    if "Traceback" in output or "asyncpg" in output or status == 70:
        yield f"traceback or driver text: {output[-3000:]}"
    if status not in {0, 1, 2}:
        yield f"exit status {status}"
    if status and not output.strip():
        yield "no reason"
    plain = unquote(output)
    shown = [part for part in one.hidden if part in output or part in plain]
    if shown:
        yield f"part of the password {shown}: {output[-3000:]}"


@contextlib.contextmanager
def places() -> Iterator[Places]:
    """Provide a PostgreSQL that refuses every password, and a peer that is no PostgreSQL."""
    with postgres_process() as process, _not_postgresql() as other:
        port = _with_passwords(process)
        folder = process.dsn.partition("host=")[2]
        yield Places(
            (f"127.0.0.1:{port}", f"127.0.0.1:{port}", f"{folder}:{port}", f"127.0.0.1:{other}",
             "127.0.0.1:1", "[::1]:1", "/nonexistent:5432")
        )  # fmt: skip


def _with_passwords(process: PostgresProcess) -> int:
    """Restart PostgreSQL on a TCP port, for users with a password only; return the port."""
    process.stop()
    folder = Path(process.dsn.partition("host=")[2])
    (process.data / "pg_hba.conf").write_text(
        "local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -k {folder}"
    process._run("pg_ctl", "-w", "-t", "60", "-l", f"{folder}/log", "-o", options, "start")
    return port


@contextlib.contextmanager
def _not_postgresql() -> Iterator[int]:
    """Answer every connection as an HTTP server does; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listening.accept()
                    with peer, contextlib.suppress(OSError):
                        peer.recv(1024)
                        peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)


def campaign(count: int, seed: str, first: int = 0) -> list[str]:
    """Try ``count`` inputs of a seed, print the progress, and return the failures."""
    failures: list[str] = []
    kinds: Counter[str] = Counter()
    with places() as found, tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        runner = Runner(Path(folder))
        for number in range(first, first + count):
            one = made(seed, number, found)
            kinds[one.kind] += 1
            for complaint in runner.complaints(one):
                failures.append(f"input {number} ({one.kind}, {one.place}): {complaint}")
                print(f"{failures[-1]}\n  {one!r}"[:4000], flush=True)
            if (number - first + 1) % 100 == 0:
                print(f"{number - first + 1:,} inputs, {len(failures)} failures", flush=True)
    print(f"{dict(kinds)}\n{dict(runner.statuses)}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz.connections")
    parser.add_argument("--count", type=int, default=7000)
    parser.add_argument("--seed", default="")
    parser.add_argument("--only", type=int)
    given = parser.parse_args()
    seed = given.seed or secrets.token_hex(4)
    print(f"seed {seed}")
    count, first = (given.count, 0) if given.only is None else (1, given.only)
    failures = campaign(count, seed, first)
    print(f"{count:,} inputs, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
