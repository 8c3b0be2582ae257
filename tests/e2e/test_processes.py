"""Isolation of the processes of a server: modules, environment and working folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from sagastore import Client, Message
from sagastore_server.runtime.worker_pool import MANY
from tests.support.server_process import ServerProcess, serve_command
from tests.support.waiting import eventually

SECRETS = {
    "PGPASSWORD": "planted",
    "PGPASSFILE": "/planted/pgpass",
    "SAGASTORE_OTLP_ENDPOINT": "http://planted@127.0.0.1:1",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=planted",
    "CREDENTIALS_DIRECTORY": "/planted",
    "AWS_SECRET_ACCESS_KEY": "planted",
    "NOTIFY_SOCKET": "/planted/notify",
}

COMMAND = [str(Path(sys.executable).with_name("sagastore-server")), "serve"]
SAFE_MODULE = [sys.executable, "-P", *serve_command()[1:]]


class ElsewhereServer(ServerProcess):
    """A server with another working folder."""

    folder = Path("/")
    prefix = COMMAND

    def command(self, *options: str) -> list[str]:
        """See the base."""
        return ["env", "--chdir", str(self.folder), *self.prefix, *options]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Return a folder with a file in place of every module; each writes its name to `ran`."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    ran = tmp_path / "ran"
    names = {*sys.stdlib_module_names, *sys.modules, "sitecustomize", "usercustomize", "uvloop"}
    roots = {name.partition(".")[0] for name in names}
    code = f"with open({str(ran)!r}, 'a') as ran: ran.write(__name__ + '\\n')\n"
    for root in roots - {"sagastore", "sagastore_server", "__main__", "__mp_main__", "tests"}:
        (folder / f"{root}.py").write_text(code, encoding="utf-8")
    return folder


@pytest.fixture
def server(tmp_path: Path, hostile: Path) -> Iterator[ElsewhereServer]:
    with closing(ElsewhereServer(tmp_path / "sagastore.db", env=SECRETS)) as found:
        found.folder = hostile
        yield found


def worker_of(server: ServerProcess) -> psutil.Process:
    """Save until the server has a worker process that waits for work; return it."""
    process = psutil.Process(server.pid)
    with Client(server.address) as client:

        def started() -> list[psutil.Process]:
            client.bulk_save([Message("a", "user", f"message {n}") for n in range(MANY)])
            return process.children()

        eventually(started)
    (worker,) = process.children()[:1]
    # Its last step before the first task.
    eventually(lambda: worker.nice() > process.nice())
    return worker


def assert_nothing_ran(server: ElsewhereServer) -> None:
    """Start the server and a worker, and check that no module of the working folder ran."""
    server.start()
    assert worker_of(server).is_running()
    assert server.terminate() == 0
    ran = server.folder.with_name("ran")
    assert not ran.exists(), ran.read_text(encoding="utf-8")
    assert not [line for line in server.stderr if "worker process failed" in line]


@pytest.mark.parametrize("command", [COMMAND, SAFE_MODULE], ids=["command", "module"])
def test_modules_of_the_working_folder_do_not_run(
    server: ElsewhereServer, command: list[str]
) -> None:
    server.prefix = command
    assert_nothing_ran(server)


def test_module_removes_the_working_folder_from_the_path(server: ElsewhereServer) -> None:
    server.prefix = serve_command()
    # Python itself imports these before any code of the server runs.
    program = [sys.executable, "-I", "-c", "import sys, runpy, pkgutil; print(*sys.modules)"]
    before = subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()
    for name in {one.partition(".")[0] for one in before}:
        (server.folder / f"{name}.py").unlink(missing_ok=True)
    assert (server.folder / "asyncio.py").exists()
    assert_nothing_ran(server)


def test_worker_has_no_secrets(server: ElsewhereServer) -> None:
    worker = worker_of(server.start())
    environment = worker.environ()
    assert "planted" not in str(environment)
    assert not set(environment) & set(SECRETS)
    assert worker.cwd() == "/"
    with Path(f"/proc/{worker.pid}/cmdline").open("rb") as line:
        assert b"planted" not in line.read()
