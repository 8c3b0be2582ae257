"""The commands of the start banner, executed by a shell as they are printed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.security.pki import Pki
from tests.support.legacy_db import legacy_db, numbered
from tests.support.server_process import STARTUP_SECONDS, clean_environment

PROGRAM = Path(sys.executable).with_name("sagastore-server")
HEADING = "Try in another terminal:\n"


@contextmanager
def _serving(folder: Path, environment: dict[str, str], *options: str) -> Iterator[str]:
    """Start a server, and yield the commands of its banner."""
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [str(PROGRAM), "serve", "--sqlite", str(folder / "s.db"), *options],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as server,
    ):
        try:
            assert server.stdout is not None
            lines: list[str] = []
            # Up to the empty line after the commands.
            while HEADING not in lines or lines[-1] != "\n":
                line = server.stdout.readline()
                log.seek(0)
                assert line, log.read()
                lines.append(line)
            yield "".join(lines[lines.index(HEADING) + 1 :])
        finally:
            server.terminate()
            assert server.wait(STARTUP_SECONDS) == 0


@pytest.mark.parametrize(
    ("host", "tls", "certificates", "tokens"),
    [
        ("127.0.0.1", False, False, False),
        ("127.0.0.1", True, False, False),
        ("127.0.0.1", True, True, False),
        ("0.0.0.0", False, False, True),  # noqa: S104 - as operators do
        ("0.0.0.0", True, False, True),  # noqa: S104
        ("0.0.0.0", True, True, True),  # noqa: S104
    ],
)
def test_commands_of_the_banner_work_as_printed(
    tmp_path: Path, host: str, tls: bool, certificates: bool, tokens: bool
) -> None:
    pki = Pki(tmp_path / "a folder")
    # Not the host of the address, as in most certificates.
    certificate, key = pki.server(pki.issue("db.example.org", "*.example.org"))
    options = ["--listen", f"{host}:0", "--allow-insecure"]
    if tls:
        options += ["--tls-cert", str(certificate), "--tls-key", str(key)]
    if certificates:
        options += ["--tls-client-ca", str(pki.ca)]
    if tokens:
        options += ["--access", str(pki.write("access.toml", b""))]
    legacy = tokens and not tls
    if legacy:
        good, bad = numbered(2)
        legacy_db(tmp_path / "s.db", [good, bad | {"metadata": '{"a": NaN}'}])
    client = pki.issue("someone.example")
    (tmp_path / "client.pem").write_bytes(client.cert_chain_pems[0].bytes())
    (tmp_path / "client.key").write_bytes(client.private_key_pem.bytes())
    # The programs are not on the PATH, as for `make run`.
    environment = clean_environment(tmp_path) | {"PATH": os.defpath, "SAGASTORE_OPS_LISTEN": "off"}
    with _serving(tmp_path, environment, *options) as commands:
        done = subprocess.run(
            ["sh", "-e", "-u", "-c", commands],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=2 * STARTUP_SECONDS,
            check=False,
        )
    assert done.returncode == 0, (commands, done)
    assert "created, durable on sqlite" in done.stdout
    assert done.stdout.count("Hello, SagaStore") == 1
    # Which only administrators may list.
    assert ("NaN" in done.stdout) is legacy
    assert ("migrate quarantine\n" in commands) is legacy
