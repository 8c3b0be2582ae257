"""systemd notifications over a real socket, and the unit and configuration files."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from sagastore_server.config.settings import Settings, load
from sagastore_server.runtime import systemd
from sagastore_server.runtime.systemd import Notifier
from tests.conftest import ServerFactory
from tests.support.messages import message
from tests.support.server_process import STARTUP_SECONDS

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="systemd is a matter of Linux"
)
DEPLOY = Path(__file__).parents[2] / "deploy/systemd"


class Manager:
    """The receiving socket in place of systemd's."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(STARTUP_SECONDS)

    def next(self) -> dict[str, str]:
        """Return the next datagram as a dictionary."""
        lines = self._socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def next_with(self, name: str) -> dict[str, str]:
        """Return the next datagram that has the key."""
        while name not in (datagram := self.next()):
            pass
        return datagram

    def received(self) -> list[dict[str, str]]:
        """Return the datagrams received so far."""
        found: list[dict[str, str]] = []
        self._socket.setblocking(False)
        try:
            while True:
                found.append(self.next())
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(STARTUP_SECONDS)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    # Not in tmp_path, because the path of a socket has at most 107 bytes.
    where = {"path": f"/tmp/sagastore-{os.getpid()}-{time.monotonic_ns()}",  # noqa: S108 - see above
             "abstract": f"@sagastore-{os.getpid()}-{tmp_path.name}"}  # fmt: skip
    address = where[request.param]
    end = Manager(address)
    yield end
    end.close()
    if address.startswith("/"):
        Path(address).unlink()


async def test_notifier_sends_each_state(manager: Manager) -> None:
    async with Notifier({"NOTIFY_SOCKET": manager.address}) as notifier:
        await asyncio.sleep(0)
        assert manager.next() == {"EXTEND_TIMEOUT_USEC": "30000000"}
        # The thread that opens a file reports progress.
        await asyncio.to_thread(notifier.status, "taking over:\n1,000 of 2,000 rows")
        assert manager.next() == {"STATUS": "taking over: 1,000 of 2,000 rows"}
        notifier.ready("serving")
        assert manager.next() == {"READY": "1", "STATUS": "serving"}
        notifier.stopping(30)
        assert manager.next() == {
            "STOPPING": "1",
            "STATUS": "draining",
            "EXTEND_TIMEOUT_USEC": "60000000",
        }
    notifier.status("too late, and no error")
    assert manager.received() == []


async def test_watchdog_stops_with_the_event_loop(manager: Manager) -> None:
    environment = {
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "20000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    async with Notifier(environment):
        for _ in range(3):
            await asyncio.to_thread(manager.next_with, "WATCHDOG")
        # A blocked event loop sends nothing.
        manager.received()
        time.sleep(0.1)  # noqa: ASYNC251 - that is the point
        assert manager.received() == []
        await asyncio.to_thread(manager.next_with, "WATCHDOG")


async def test_long_start_extends_the_timeout(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "EXTEND_EVERY", 0.01)
    async with Notifier({"NOTIFY_SOCKET": manager.address}) as notifier:
        for _ in range(3):
            await asyncio.to_thread(manager.next_with, "EXTEND_TIMEOUT_USEC")
        notifier.ready("serving")
        await asyncio.to_thread(manager.next_with, "READY")
        await asyncio.sleep(0.05)
        assert manager.received() == []


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "/missing/socket"},
        {"NOTIFY_SOCKET": "/missing/socket", "WATCHDOG_USEC": "no number"},
        {"NOTIFY_SOCKET": "/missing/socket", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"},
    ],
)
async def test_notifier_without_systemd_does_nothing(environment: dict[str, str]) -> None:
    async with Notifier(environment) as notifier:
        await asyncio.sleep(0)
        notifier.status("starting")
        notifier.ready("serving")
        notifier.stopping(1)


@pytest.mark.parametrize("manager", ["abstract"], indirect=True)
def test_server_notifies_systemd(manager: Manager, server_process: ServerFactory) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    server = server_process(env=environment)
    server.spawn()
    ready = manager.next_with("READY")
    assert ready["STATUS"].startswith("serving ")
    # Ready means that calls are accepted.
    address = server.wait_for_event("serving")["address"]
    server.address = address
    assert address in ready["STATUS"]
    with server.channel() as channel:
        StorageServiceStub(channel).Save(storage_pb2.SaveRequest(message=message()), timeout=60)
    manager.next_with("WATCHDOG")
    # A stopped process sends no watchdog message, so systemd would restart it.
    os.kill(server.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, server.pid, os.WSTOPPED | os.WNOWAIT)
    manager.received()
    time.sleep(0.3)
    assert manager.received() == []
    os.kill(server.pid, signal.SIGCONT)
    manager.next_with("WATCHDOG")
    server.ask_to_stop()
    stopping = manager.next_with("STOPPING")
    assert stopping["EXTEND_TIMEOUT_USEC"] == "60000000"
    assert server.wait() == 0


# ------------------------------------------------------------------ the files in deploy/


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "sagastore.service").read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def test_unit_file_matches_the_server() -> None:
    said = unit()
    drain = Settings.model_fields["drain_seconds"].default
    assert int(said["TimeoutStopSec"][0]) > drain + 30
    assert said["Type"] == ["notify"]
    assert int(said["WatchdogSec"][0]) >= 10


def test_example_configuration_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SAGASTORE_")]:
        monkeypatch.delenv(name)
    file = DEPLOY / "sagastore.toml"
    assert load(file).listen == "127.0.0.1:50051"
    # Commented-out lines are valid settings.
    lines = file.read_text(encoding="utf-8").splitlines()
    offered = tomllib.loads(
        "\n".join(line[1:] for line in lines if line.startswith("#") and " = " in line)
    )
    assert set(offered) <= set(Settings.model_fields)


@pytest.mark.parametrize("unit", sorted(path.name for path in DEPLOY.glob("*.service")))
def test_systemd_accepts_the_unit(tmp_path: Path, unit: str) -> None:
    try:
        analyze = subprocess.run(["systemd-analyze", "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no systemd-analyze here")
    assert analyze.stdout
    text = (DEPLOY / unit).read_text(encoding="utf-8")
    # The program is not installed at the path of the unit.
    copy = tmp_path / unit
    for timer in DEPLOY.glob("*.timer"):
        (tmp_path / timer.name).write_bytes(timer.read_bytes())
    copy.write_text(text.replace("/opt/sagastore/bin/sagastore-server", "/bin/true"))
    verified = [copy, *tmp_path.glob(f"{copy.stem}.timer")]
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, verified)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "sagastore" in line]
    assert (done.returncode, ours) == (0, [])
