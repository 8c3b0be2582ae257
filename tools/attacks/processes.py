"""Attacks on the processes of the server: planted modules, inherited secrets, file modes."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.support.messages import batch, message
from tools.attacks.file_attack import FileAttack
from tools.attacks.service import Service

_PLANTED = ("asyncio", "multiprocessing", "sagastore_server", "json", "logging")
_SECRETS = {
    "PGPASSWORD": "secret-of-postgresql",
    "AWS_SECRET_ACCESS_KEY": "secret-of-a-cloud",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret-of-telemetry",
    "SOME_TOKEN": "secret-of-a-service",
}
_BATCHES, _MESSAGES = 8, 1000
"""Enough work for the server to start a worker process."""
_WAITING = 10
"""Polls in a row at which a started worker waits for work."""
_POLL = 0.1
_STARTED = 60.0
"""Seconds for the start of a worker process on a busy machine."""


def planted_modules(folder: Path, attempts: int) -> list[str]:
    """Plant modules in the working folder; no process of the server may import them."""
    del attempts
    planted = folder / "working"
    planted.mkdir()
    ran = folder / "ran"
    ran.mkdir()
    for name in _PLANTED:
        code = f"open({str(ran / name)!r}, 'w').close()\nraise ImportError('planted')\n"
        (planted / f"{name}.py").write_text(code)
    with Service(_subfolder(folder), working_folder=planted) as service:
        worker = _worker(service, lambda: any(ran.iterdir()))
        found = [f"{one.name}.py of the working folder was run" for one in ran.iterdir()]
        if worker is None and not found:
            found.append("no worker process has started")
    return found


def inherited_secrets(folder: Path, attempts: int) -> list[str]:
    """Start the server with secrets in its environment; no other process may have them."""
    del attempts
    with Service(_subfolder(folder), _SECRETS) as service:
        if _worker(service, lambda: False) is None:
            return ["no worker process has started"]
        return [
            f"process {' '.join(process.cmdline()[1:3])} has {name} in its environment"
            for process in psutil.Process(service.pid).children(recursive=True)
            for name, value in _SECRETS.items()
            if value in Path(f"/proc/{process.pid}/environ").read_bytes().decode()
        ]


def _subfolder(folder: Path) -> Path:
    made = folder / "service"
    made.mkdir()
    return made


def _worker(service: Service, stop: Callable[[], bool]) -> psutil.Process | None:
    """Save messages until a worker process waits for work, or ``stop`` holds."""
    until = time.monotonic() + _STARTED
    with service.channel("attacking-writer") as channel:
        stub = service.stub(channel)
        waiting = 0
        for _ in stub.BulkSave(_batches()):
            pass
        while time.monotonic() < until and not stop():
            workers = psutil.Process(service.pid).children()
            waits = bool(workers) and workers[0].status() == psutil.STATUS_SLEEPING
            waiting = waiting + 1 if waits else 0
            if waiting == _WAITING:
                return workers[0]
            time.sleep(_POLL)
    return None


def _batches() -> Iterator[object]:
    for sequence in range(1, _BATCHES + 1):
        yield batch(sequence, *(message() for _ in range(_MESSAGES)))


def readable_files(folder: Path, attempts: int) -> list[str]:
    """Serve and back up a store; no other user may read a file of it."""
    del attempts
    state = _subfolder(folder)
    with Service(state) as service:
        service.get_with("beside")
        found = _readable(state)
    backup = folder / "backup.db"
    subprocess.run(
        [sys.executable, "-m", "sagastore_server", "backup", str(backup),
         "--sqlite", str(state / "saga.db")],
        check=True, capture_output=True, timeout=60, umask=0o022,
    )  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "sagastore_server", "token", "new", "made", "--role", "reader",
         "--access", str(folder / "made.toml")],
        check=True, capture_output=True, timeout=60, umask=0o022,
    )  # fmt: skip
    return found + _readable(folder)


def _readable(folder: Path) -> list[str]:
    return [
        f"{path.name} has the mode {stat.S_IMODE(path.stat().st_mode):o}"
        for path in sorted(folder.iterdir())
        if path.is_file() and path.stat().st_mode & 0o077
    ]


ATTACKS = (
    FileAttack(
        "planted-modules",
        "modules named as those of the standard library are in the working folder of the server",
        planted_modules,
    ),
    FileAttack(
        "inherited-secrets",
        "the environment of the server has secrets when it starts worker processes",
        inherited_secrets,
    ),
    FileAttack(
        "readable-files",
        "other users read the files of a server that was started with umask 022",
        readable_files,
    ),
)
