"""Real PgBouncer in transaction mode, in front of the PostgreSQL of the tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.support.postgres import _as_other, give_away

PORT = 6432
WITHIN = 60.0
"""Seconds in which it must answer."""


class PgBouncer:
    """PgBouncer on a socket in ``folder``, whose path must be short."""

    def __init__(self, program: str, folder: Path, dsn: str, *settings: str) -> None:
        """Create it in front of the server of ``dsn``."""
        self._command = [*_as_other(), program, "-q", str(folder / "pgbouncer.ini")]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        parts = urlsplit(dsn)
        given = {name: values[0] for name, values in parse_qs(parts.query).items()}
        place = {
            "host": given.get("host", parts.hostname),
            "port": given.get("port", parts.port),
            "user": parts.username,
            "password": parts.password,
        }
        lines = [
            "[databases]",
            "* = " + " ".join(f"{name}={value}" for name, value in place.items() if value),
            "[pgbouncer]",
            "listen_addr =",
            f"listen_port = {PORT}",
            f"unix_socket_dir = {folder}",
            "auth_type = any",
            "pool_mode = transaction",
            # What is in the pool no client may rely on: few connections, often exchanged.
            "default_pool_size = 6",
            "max_client_conn = 200",
            "server_lifetime = 1",
            *settings,
        ]
        folder.mkdir(exist_ok=True)
        (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        (folder / "pgbouncer.ini").chmod(0o644)
        give_away(folder)

    def dsn(self, database: str) -> str:
        """Return the connection string of a database behind it."""
        return f"postgresql://postgres@/{database}?host={self._folder}&port={PORT}"

    def start(self) -> None:
        """Start PgBouncer and wait until it answers."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )
        until = time.monotonic() + WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("PgBouncer does not answer")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop PgBouncer at once; every client loses its connection."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            (self._folder / f".s.PGSQL.{PORT}").unlink(missing_ok=True)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._folder / f".s.PGSQL.{PORT}"))
            except OSError:
                return False
            return True


@contextmanager
def pgbouncer_before(dsn: str, *settings: str) -> Iterator[PgBouncer]:
    """Run PgBouncer for the duration of the context.

    Raises:
        FileNotFoundError: PgBouncer is not installed.
    """
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        raise FileNotFoundError("pgbouncer")
    # Below /tmp, not in a test's folder: a socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pgb-"))
    folder.chmod(0o755)
    running = PgBouncer(program, folder / "b", dsn, *settings)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)
