"""Load generator: sends calls and measures them, with ghz or with several Python processes.

ghz is written in Go and uses a fraction of the CPU time of a Python client. The CPU time of the
client is measured with every load, so that a run shows whether the client was the bottleneck.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tools.benchmarks.messages import Request

ROOT = Path(__file__).parents[2]
GHZ = ROOT / "build" / "tools" / "bin" / "ghz"
"""Path of the ghz that ``make ghz`` builds."""

CONNECTIONS = 8
"""Maximum number of HTTP/2 connections that calls are spread over."""

CLIENTS = 2
"""Number of Python processes that replace ghz."""

_STORAGE = ("sagastore/v1/storage.proto", "sagastore.v1.StorageService")
_ECHO = ("echo.proto", "sagastore.bench.Echo")


class Call(NamedTuple):
    """Finished call."""

    ended: float
    """Seconds since 1970."""
    seconds: float
    failure: str
    """Empty, or the status name and message."""


class Load(NamedTuple):
    """Result of a load."""

    seconds: float
    calls: list[Call]
    processor: float
    """Share of one core that the client used, including its startup."""

    @property
    def rate(self) -> float:
        """Answered calls per second."""
        return sum(not call.failure for call in self.calls) / self.seconds

    @property
    def latencies(self) -> list[float]:
        """Latency of each answered call in seconds."""
        return [call.seconds for call in self.calls if not call.failure]

    @property
    def failures(self) -> Counter[str]:
        """Number of failed calls by error."""
        return Counter(call.failure for call in self.calls if call.failure)


class LoadError(Exception):
    """The load could not be sent; the message says why."""


def find_ghz() -> Path | None:
    """Return the ghz built by ``make ghz``, or one on the PATH."""
    if GHZ.exists():
        return GHZ
    found = shutil.which("ghz")
    return None if found is None else Path(found)


class Generator:
    """Sends loads; keeps its files in a folder."""

    def __init__(self, folder: Path, *, python: bool = False) -> None:
        """Use ghz if available, unless ``python`` is set."""
        self._folder = folder
        self._ghz = None if python else find_ghz()
        self.most = 0.0
        """Highest share of a core that any load used."""
        self.version = self._version()

    @property
    def name(self) -> str:
        """Description for the report."""
        return f"{CLIENTS} Python processes" if self._ghz is None else f"ghz {self.version}"

    def send(
        self,
        address: str,
        method: str,
        requests: Sequence[Request],
        in_flight: int,
        *,
        rate: int = 0,
    ) -> Load:
        """Send each request once, ``in_flight`` at a time, and wait for the answers.

        ``method`` is one of StorageService, or ``Echo``. ``rate``, unless 0, limits the calls
        started per second.

        Raises:
            LoadError: The client failed.
        """
        name = "Save" if method == "Echo" else method
        with tempfile.TemporaryDirectory(dir=self._folder) as work:
            data = Path(work) / "requests.json"
            data.write_text(json.dumps(list(requests)), encoding="utf-8")
            if self._ghz is None:
                done = _by_python(address, name, data, in_flight, rate)
            else:
                proto = _ECHO if method == "Echo" else _STORAGE
                options = [
                    *_options(proto, name),
                    f"--data-file={data}",
                    f"--concurrency={min(in_flight, len(requests))}",
                    f"--connections={min(in_flight, len(requests), CONNECTIONS)}",
                    f"--total={len(requests)}",
                    f"--rps={rate}",
                ]
                done = _by_ghz(self._ghz, address, options, Path(work))
        if len(done.calls) != len(requests):
            raise LoadError(f"{len(done.calls)} of {len(requests)} calls were made")
        if not rate:
            self.most = max(self.most, done.processor)
        return done

    def _version(self) -> str:
        if self._ghz is None:
            return ""
        output = subprocess.run(
            [self._ghz, "--version"], capture_output=True, text=True, check=False
        )
        return (output.stdout or output.stderr).strip().removeprefix("v")


def _options(proto: tuple[str, str], method: str) -> list[str]:
    file, service = proto
    return [
        "--insecure",
        f"--import-paths={ROOT / 'protos'},{ROOT / 'tools' / 'benchmarks'}",
        f"--proto={file}",
        f"--call={service}.{method}",
        "--disable-template-functions",
        "--disable-template-data",
        "--timeout=60s",
        "--format=json",
    ]


def _by_ghz(ghz: Path, address: str, options: Iterable[str], work: Path) -> Load:
    report = work / "report.json"
    before, began = _children_seconds(), time.monotonic()
    done = subprocess.run(
        [ghz, *options, f"--output={report}", address],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if not report.exists():
        said = (done.stdout + done.stderr).strip().splitlines()
        raise LoadError(f"ghz failed: {said[-1] if said else done.returncode}")
    processor = (_children_seconds() - before) / (time.monotonic() - began)
    output = json.loads(report.read_text(encoding="utf-8"))
    return Load(output["total"] / 1e9, [_call(one) for one in output["details"] or ()], processor)


def _call(output: dict[str, Any]) -> Call:
    # ghz records the end of a call, not its start.
    ended = datetime.fromisoformat(output["timestamp"])
    failure = "" if output["status"] == "OK" else f"{output['status']}: {output['error']}"
    return Call(ended.timestamp(), output["latency"] / 1e9, failure)


def _by_python(address: str, method: str, data: Path, in_flight: int, rate: int) -> Load:
    """Split the requests among several Python processes."""
    before, began = _children_seconds(), time.monotonic()
    clients = []
    for number in range(CLIENTS):
        part = (in_flight + CLIENTS - 1 - number) // CLIENTS
        options = [address, method, data, part, rate / CLIENTS, number, CLIENTS]
        command = [sys.executable, "-m", "tools.benchmarks.python_client", *map(str, options)]
        clients.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ)
        )
    parts = [json.loads(client.communicate()[0] or "null") for client in clients]
    if None in parts:
        raise LoadError("a client process failed")
    processor = (_children_seconds() - before) / (time.monotonic() - began)
    first = min(part["began"] for part in parts)
    last = max(part["ended"] for part in parts)
    calls = [Call(*call) for part in parts for call in part["calls"]]
    return Load(last - first, calls, processor / CLIENTS)


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
