"""Real nginx with the shipped configuration, in front of a server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

from tests.security.pki import Pki, chain, key
from tests.support.ports import ReservedPort, has_ipv6
from tests.support.server_process import STARTUP_SECONDS
from tests.support.waiting import eventually

CONFIGURATION = Path(__file__).parents[2] / "deploy/nginx/nginx.conf"
PROGRAM = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
_MODULES = Path("/etc/nginx/modules-enabled")
MISSING = (
    None
    if PROGRAM and list(_MODULES.glob("*stream.conf"))
    else "nginx or its module stream is not installed (apt-get install nginx libnginx-mod-stream)"
)
"""Why the front cannot run here, or None."""


class Front:
    """nginx with the shipped configuration, on loopback.

    Only paths, ports and the user are replaced, and what a test names in ``changes``.
    """

    def __init__(
        self, folder: Path, pki: Pki, server: str, changes: dict[str, str] | None = None
    ) -> None:
        """Create it in front of the server at ``server``; ``pki`` has the server's files."""
        folder.mkdir()
        self._folder = folder
        self._pki = pki
        self._server = server
        self._changes = changes or {}
        self._process: subprocess.Popen[bytes] | None = None
        hosts = ("::1",) if has_ipv6() else ()
        self._reserved = ReservedPort(*hosts), ReservedPort(*hosts)
        self.port, self.certificate_port = (one.number for one in self._reserved)
        """The ports for callers with tokens, and for those with client certificates."""
        leaf = pki.issue("front.example")
        pki.write("front.pem", chain(leaf))
        pki.write("front.key", key(leaf))

    @property
    def address(self) -> str:
        """Address for callers with tokens."""
        return f"127.0.0.1:{self.port}"

    @property
    def certificate_address(self) -> str:
        """Address for callers with client certificates."""
        return f"127.0.0.1:{self.certificate_port}"

    @property
    def socket(self) -> str:
        """Path of the socket between the two halves, for connections with a PROXY header."""
        return str(self._folder / "front.sock")

    @property
    def log(self) -> str:
        """The error log."""
        return (self._folder / "error.log").read_text()

    @property
    def changes_log(self) -> list[str]:
        """The log of changes; complete once the front has drained."""
        return (self._folder / "changes.log").read_text().splitlines()

    def start(self) -> Front:
        """Start nginx and wait until it accepts connections."""
        file = self._folder / "nginx.conf"
        file.write_text(self._configuration())
        assert PROGRAM is not None
        process = self._process = subprocess.Popen(
            [PROGRAM, "-e", str(self._folder / "start.log"), "-c", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # It writes its PID file once it listens on all its addresses.
        pid_file = self._folder / "nginx.pid"
        eventually(lambda: pid_file.exists() or process.poll() is not None)
        if not pid_file.exists():
            start = self._folder / "start.log"
            raise AssertionError(f"nginx does not start: {start.read_text()}{self.log}")
        return self

    def close(self) -> None:
        """Stop nginx; open calls end.

        nginx kills a worker that does not end within about a second, with the lines that it has
        not written yet.
        """
        self._end(signal.SIGTERM)
        for one in self._reserved:
            one.close()

    def drain(self) -> None:
        """Stop nginx once every connection is closed; then its logs are complete."""
        self._end(signal.SIGQUIT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(STARTUP_SECONDS)
            self._process = None

    def memory(self) -> int:
        """Resident memory of the workers, in bytes."""
        assert self._process is not None
        workers = psutil.Process(self._process.pid).children()
        return sum(worker.memory_info().rss for worker in workers)

    def reload(self) -> None:
        """Read the configuration again, as ``systemctl reload`` does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def _configuration(self) -> str:
        folder = self._folder
        text = CONFIGURATION.read_text()
        temporary = "".join(
            f"    {kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        replaced = {
            # The folders of tests are closed to other users.
            "user www-data;": "user root;\ndaemon off;" if os.geteuid() == 0 else "daemon off;",
            "/run/nginx.pid": f"{folder}/nginx.pid",
            "/var/log/nginx/error.log": f"{folder}/error.log",
            "/var/log/nginx/sagastore-changes.log": f"{folder}/changes.log",
            "/run/sagastore-front.sock": f"{folder}/front.sock",
            "/etc/sagastore/tls": str(self._pki.folder),
            "listen 443 ": f"listen 127.0.0.1:{self.port} ",
            "listen [::]:443 ": f"listen [::1]:{self.port} ",
            "listen 8443 ": f"listen 127.0.0.1:{self.certificate_port} ",
            "listen [::]:8443 ": f"listen [::1]:{self.certificate_port} ",
            "127.0.0.1:50051;": f"{self._server};",
            "http {\n": f"http {{\n{temporary}",
        } | self._changes
        for old, new in replaced.items():
            assert old in text, f"the configuration has no {old!r}"
            text = text.replace(old, new)
        if not has_ipv6():
            text = "\n".join(line for line in text.splitlines() if "listen [::1]" not in line)
        return text
