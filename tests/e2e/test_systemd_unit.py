"""A server under the restrictions of the shipped systemd unit."""

from __future__ import annotations

import ctypes
import errno
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from sagastore import Client, Message
from sagastore_server.runtime.worker_pool import MANY, SHORT
from tests.support import unit_sandbox
from tests.support.server_process import ServerProcess, clean_environment, serve_command
from tests.support.waiting import eventually
from tests.telemetry.ops import ON, get, ops_of

MESSAGES = [Message("a", "user", f"message {number}") for number in range(MANY)]
DEPLOY = Path(__file__).parents[2] / "deploy/systemd"
UNIT = DEPLOY / "sagastore.service"
BACKUP_UNIT = DEPLOY / "sagastore-backup.service"


def _missing() -> str:
    """Return why the restrictions cannot be applied here; empty if they can."""
    if not sys.platform.startswith("linux"):
        return "systemd is a matter of Linux"
    try:
        ctypes.CDLL(unit_sandbox.LIBRARY)
    except OSError:
        return f"{unit_sandbox.LIBRARY} is not installed (Debian: libseccomp2)"
    return ""


pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing() or "not skipped")


class RestrictedServer(ServerProcess):
    """A server under the restrictions of `unit`."""

    unit = UNIT

    def command(self, *options: str) -> list[str]:
        """See the base."""
        return restricted(self.unit, *serve_command(*options))


def restricted(unit: Path, *command: str) -> list[str]:
    """Return the command line that runs ``command`` under the restrictions of ``unit``."""
    return [sys.executable, unit_sandbox.__file__, str(unit), *command]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RestrictedServer]:
    with closing(RestrictedServer(tmp_path / "sagastore.db", env=ON)) as found:
        yield found


def worker_of(server: ServerProcess) -> psutil.Process:
    """Save until the server has started a worker process; return it."""
    process = psutil.Process(server.pid)
    with Client(server.address) as client:

        def started() -> list[psutil.Process]:
            client.bulk_save(MESSAGES)
            return process.children()

        eventually(started)
    return process.children()[0]


def test_server_works_under_the_unit(server: RestrictedServer) -> None:
    server.start()
    with Client(server.address) as client:
        saved = client.save(Message("a", "user", "hello wolves"))
        worker = worker_of(server)
        # The worker lowers its priority before its first task.
        eventually(lambda: worker.nice() > psutil.Process(server.pid).nice())
        # The worker parses metadata of this length.
        metadata = {"key": "x" * 2 * SHORT}
        client.save(Message("a", "user", "hello metadata", metadata=metadata))
        found = list(client.search("hello", metadata=metadata))
        assert [one.message.content for one in found] == ["hello metadata"]
        assert [one.message.id for one in client.search("wolves")] == [saved.id]
    assert get(ops_of(server), "/readyz").status == 200
    assert get(ops_of(server), "/metrics").status == 200
    assert worker.is_running()
    assert server.terminate() == 0
    assert not [line for line in server.stderr if '"warning"' in line or '"error"' in line]
    assert server.sqlite.stat().st_mode & 0o777 == 0o600


def test_worker_tolerates_a_stricter_filter(server: RestrictedServer, tmp_path: Path) -> None:
    """As in units written before: they deny that a process lowers its priority."""
    text = UNIT.read_text(encoding="utf-8")
    server.unit = tmp_path / "strict.service"
    server.unit.write_text(text.replace("SystemCallFilter=setpriority\n", ""), encoding="utf-8")
    assert server.unit.read_text(encoding="utf-8") != text
    worker = worker_of(server.start())
    with Client(server.address) as client:

        def worked() -> bool:
            client.bulk_save(MESSAGES)
            return worker.cpu_times().user > 0.5

        # More than its start takes.
        eventually(worked)
    assert worker.nice() == psutil.Process(server.pid).nice()
    assert server.terminate() == 0
    assert not [line for line in server.stderr if "worker process failed" in line]


def test_backup_works_under_its_unit(server: RestrictedServer, tmp_path: Path) -> None:
    server.start()
    with Client(server.address) as client:
        client.save(Message("a", "user", "hello"))
    (line,) = unit_sandbox.options_of(BACKUP_UNIT)["ExecStart"]
    options = line.split()[1:]
    assert options[:2] == ["backup", "/var/lib/sagastore-backups"]
    options[1] = str(tmp_path / "backups")
    options[-2:] = ["--sqlite", str(server.sqlite)]
    command = [sys.executable, "-m", "sagastore_server", *options]
    done = subprocess.run(
        restricted(BACKUP_UNIT, *command),
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ", revision 1, phase sqlite-only, " in done.stdout
    assert done.stdout.endswith("; 1 kept\n")


DENIED = {
    "capability": "os.chroot('/')",
    "user": "os.setuid(12345)",
    "namespace": "libc.unshare(0x10000000) == 0 or fail()",
    "priority of another": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "packet socket": "socket.socket(17, socket.SOCK_RAW)",
    "code in writable memory": "mmap.mmap(-1, 4096, prot=7)",
    "kernel log": "libc.klogctl(10, None, 0) >= 0 or fail()",
}


@pytest.mark.parametrize("attempt", DENIED)
def test_restrictions_are_in_force(tmp_path: Path, attempt: str) -> None:
    """Otherwise the tests above would show nothing."""
    program = (
        "import ctypes, mmap, os, socket, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def fail(): raise OSError(ctypes.get_errno(), 'denied')\n"
        f"try:\n    {DENIED[attempt]}\nexcept OSError as exc:\n    sys.exit(exc.errno)\n"
    )
    command = restricted(UNIT, sys.executable, "-c", program)
    done = subprocess.run(command, env=clean_environment(tmp_path), check=False)
    assert done.returncode in {errno.EPERM, errno.EAFNOSUPPORT}


@pytest.mark.parametrize("unit", [UNIT, BACKUP_UNIT])
def test_every_restriction_of_the_unit_is_known(unit: Path) -> None:
    """A new option is applied by the sandbox, or listed as one that it cannot apply."""
    restricting = ("Private", "Protect", "Restrict", "SystemCall", "Memory", "Lock", "Capability")
    options = unit_sandbox.options_of(unit)
    named = {name for name in options if name.startswith(restricting)}
    assert named - unit_sandbox.APPLIED - unit_sandbox.NEEDS_SYSTEMD == set()
    assert {*options, "LimitNOFILE"} >= unit_sandbox.APPLIED
