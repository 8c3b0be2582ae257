"""Attacks that use what the server trusts: certificates, trace contexts, addresses, archives."""

from __future__ import annotations

import gzip
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from grpc_health.v1.health_pb2_grpc import HealthStub  # type: ignore[import-untyped]

from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.security.pki import CLIENT, Pki, chain, entry, environment, key, write_access
from tests.support.server_process import ServerProcess, clean_environment
from tests.telemetry.collector import Collector
from tools.attacks.file_attack import FileAttack
from tools.attacks.service import Service

_VALID = 10.0
"""Seconds for which the certificate of the attacker is valid."""
_TOLERATED = 20.0
"""Seconds after its end within which the server must refuse it."""
_CALL = 10.0
_POLL = 0.2
_REFUSED_WITHIN = 60.0
_MEMBER = b"\0" * (64 * 1024 * 1024)
_MEMBERS = 48
"""Members of the archive: it has 3 GiB in 3 MB."""
_SPOOLED = 1024**3 + 2**26
"""Bytes that an import with a limit of 1 GiB may write into a temporary file."""
_SAMPLE = 0.01
_ANONYMOUS, _KNOWN = 0xA77AC4, 0x600D
"""Trace ids."""


def expired_certificate(folder: Path, attempts: int) -> list[str]:
    """Keep a connection open beyond the end of the client certificate."""
    del attempts
    pki = Pki(folder / "pki")
    access = write_access(folder / "access.toml", entry("certificate", CLIENT, "reader"))
    server = ServerProcess(folder / "saga.db", env=environment(pki.server(), pki.ca, access))
    try:
        server.start()
        ends = datetime.now(UTC) + timedelta(seconds=_VALID)
        leaf = pki.issue(CLIENT, not_after=ends)
        credentials = grpc.ssl_channel_credentials(pki.ca.read_bytes(), key(leaf), chain(leaf))
        with grpc.secure_channel(server.address, credentials) as channel:
            if (code := _get(channel)) != "NOT_FOUND":
                return [f"a valid certificate was refused with {code}"]
            while _get(channel) == "NOT_FOUND":
                if datetime.now(UTC) > ends + timedelta(seconds=_TOLERATED):
                    return [f"calls were accepted {_TOLERATED:g} s after the certificate expired"]
                time.sleep(_POLL)
    finally:
        server.close()
    return []


def _get(channel: grpc.Channel) -> str:
    try:
        StorageServiceStub(channel).Get(storage_pb2.GetRequest(id="unknown"), timeout=_CALL)
    except grpc.RpcError as exc:
        code: grpc.StatusCode = exc.code()
        return code.name
    return "OK"


def anonymous_traces(folder: Path, attempts: int) -> list[str]:
    """Send a sampled trace context with calls that are refused, and with one that is not."""
    with Collector() as collector:
        settings = {
            "SAGASTORE_OTLP_ENDPOINT": collector.endpoint,
            "SAGASTORE_TRACE_SHARE": "0",
        }
        with Service(folder, settings) as service:
            certificate = service.target.ca.read_bytes()
            anonymous = grpc.ssl_channel_credentials(certificate)
            with grpc.secure_channel(service.address, anonymous) as channel:
                for _ in range(attempts):
                    _refused(lambda: _traced(channel, _ANONYMOUS))
                HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_CALL)
            with service.channel("attacker") as channel:
                _refused(lambda: _traced(channel, _KNOWN))
            collector.wait_for("sagastore.v1.StorageService/Get", _KNOWN)
        forged = [span for span in collector.spans if int.from_bytes(span.trace_id) == _ANONYMOUS]
    return [f"{len(forged)} spans of {attempts} refused calls were exported"] if forged else []


def _traced(channel: grpc.Channel, trace: int) -> None:
    context = f"00-{trace:032x}-{trace:016x}-01"
    StorageServiceStub(channel).Get(
        storage_pb2.GetRequest(id="unknown"), timeout=_CALL, metadata=(("traceparent", context),)
    )


def _refused(call: Callable[[], None]) -> None:
    try:
        call()
    except grpc.RpcError:
        return
    raise AssertionError("the call was accepted")


def open_ops_port(folder: Path, attempts: int) -> list[str]:
    """Start the server with an ops port on all interfaces, without a decision to accept it."""
    del attempts
    server = ServerProcess(folder / "saga.db", env={"SAGASTORE_OPS_LISTEN": "0.0.0.0:0"})
    try:
        server.spawn()
        until = time.monotonic() + _REFUSED_WITHIN
        while server.alive and time.monotonic() < until:
            if any(event.get("event") == "serving" for event in list(server.events)):
                return ["the server listens on all interfaces without an explicit decision"]
            time.sleep(_POLL)
        if server.alive or server.wait() == 0:
            return ["the server did not refuse to start"]
        if not any("ops_listen" in line or "ops-listen" in line for line in server.stderr):
            return [f"the refusal does not name ops_listen: {server.stderr}"]
    finally:
        server.close()
    return []


def inflated_import(folder: Path, attempts: int) -> list[str]:
    """Import small archives of a large database, whose header states its size or does not."""
    del attempts
    head = bytearray(100)
    head[:16] = b"SQLite format 3\0"
    hidden = _imported(folder, bytes(head), "--temp-limit", "1")
    head[16:18], head[28:32] = (4096).to_bytes(2), (2**32 - 1).to_bytes(4)
    return hidden + _imported(folder, bytes(head))


def _imported(folder: Path, head: bytes, *options: str) -> list[str]:
    archive, spool = folder / "memory.db.gz", folder / "spool"
    spool.mkdir(exist_ok=True)
    member = gzip.compress(_MEMBER, 9)
    archive.write_bytes(gzip.compress(head) + member * _MEMBERS)
    importing = subprocess.Popen(
        [sys.executable, "-c", _LIMITED_IMPORT, str(archive), *options],
        env=clean_environment(folder) | {"TMPDIR": str(spool)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    largest = 0
    try:
        while importing.poll() is None and largest <= _SPOOLED:
            largest = max(largest, _size(spool))
            time.sleep(_SAMPLE)
    finally:
        importing.kill()
    _, errors = importing.communicate()
    if largest > _SPOOLED:
        return [f"more than {_SPOOLED:,} bytes were spooled for {archive.stat().st_size:,}"]
    if importing.returncode == 0 or archive.name not in errors:
        return [f"the import ended with status {importing.returncode}: {errors.strip()}"]
    return []


_LIMITED_IMPORT = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({2 * _SPOOLED}, {2 * _SPOOLED}))
from sagastore.cli import main
sys.argv[1:] = ["--target", "127.0.0.1:1", "import", *sys.argv[1:]]
main()
"""


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


ATTACKS = (
    FileAttack(
        "expired-certificate",
        "calls continue on a connection whose client certificate has expired",
        expired_certificate,
    ),
    FileAttack(
        "anonymous-traces",
        "calls without a token carry a sampled trace context",
        anonymous_traces,
        short=5,
        long=1000,
    ),
    FileAttack(
        "open-ops-port",
        "the server starts with an ops port on all interfaces",
        open_ops_port,
    ),
    FileAttack(
        "inflated-import",
        "archives of 3 MB are imported; one states that it has 16 TiB, one has 3 GiB, limited to 1",
        inflated_import,
    ),
)
