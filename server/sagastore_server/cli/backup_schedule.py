"""Rotated backups: one (``--keep``), or one at a time until a signal arrives (``--every``).

A separate process, not a task of the server: copying and verifying take a processor, and a fault
in them must not affect calls. The record beside the store tells the server, for its metrics.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, NoReturn

from sagastore_server.cli.interruptible import Report, handled_by, with_progress
from sagastore_server.config.options import warn
from sagastore_server.interfaces.backups import BackupRecord
from sagastore_server.sqlite.backup.create import (
    BackupError,
    BackupReport,
    StoreMovedError,
    explained,
    identity,
)
from sagastore_server.sqlite.backup.record import read_record, write_record
from sagastore_server.sqlite.backup.rotation import Rotated, Rotation, due, locked

_RETRY_SECONDS = 300.0
"""Pause after a failed backup, if the interval is not shorter."""
_LONGEST_SLEEP = 30.0
"""Seconds after which the wall clock is read again: a machine may sleep, or its clock be set."""


class Plan(NamedTuple):
    """What to back up, where to, how often, and how many backups to keep."""

    path: Path
    folder: Path
    keep: int
    every: float | None = None
    """Seconds from the begin of a backup to that of the next; None: one backup."""


class Outcome(NamedTuple):
    """A backup, and when the next one is due."""

    rotated: Rotated
    next_at: datetime | None


Say = Callable[[Outcome], None]


class _Stopped(BaseException):
    """A signal arrived between two backups."""


def rotate_once(plan: Plan, say: Say) -> None:
    """Make one backup and remove surplus ones.

    Raises:
        BackupError: It cannot be made.
        KeyboardInterrupt: A signal stopped it.

    """
    identity(plan.path)  # Before the folder is created.
    with locked(plan.path, plan.folder) as rotation:
        say(Outcome(_made(plan, rotation, threading.Event()), None))


def rotate_until_stopped(plan: Plan, every: float, say: Say) -> None:
    """Make a backup whenever one is due, until SIGINT or SIGTERM arrives.

    The first one is due ``every`` seconds after the newest backup in the folder. A failed backup
    is reported on standard error and tried again after `_RETRY_SECONDS`, or ``every`` if shorter.

    Raises:
        BackupError: The folder cannot be used.
        StoreMovedError: The messages have moved to PostgreSQL.

    """
    try:
        with handled_by(_stop), _locked_for(plan) as rotation:
            next_at = time.time() + _first_due(rotation, every)
            if next_at > time.time():
                warn(f"the newest backup is recent; the next one is due at {_clock(next_at)}")
            while True:
                _sleep_until(next_at)
                next_at = time.time() + _attempt(plan, rotation, every, say)
    except _Stopped:
        return


def recorded(path: Path, work: Callable[[], BackupReport], *, every: float | None) -> BackupReport:
    """Make a backup by ``work``, and record its outcome beside the store at ``path``.

    ``every`` is the interval of the schedule, 0 if it is unknown. None: the backup belongs to no
    schedule, so the recorded interval stays, and a failure is not recorded.

    Raises:
        BackupError: It cannot be made.
        KeyboardInterrupt: A signal stopped it; nothing is recorded.

    """
    found = read_record(path)
    before = found or BackupRecord()
    if every is not None:
        before = before._replace(interval=every)
    try:
        report = work()
    except BackupError as exc:
        # Not for a mistyped store, beside which there is nothing.
        known = found is not None or path.exists()
        if every is not None and known and not isinstance(exc, StoreMovedError):
            _write(path, before._replace(failed_at=time.time()))
        raise
    _write(
        path,
        before._replace(succeeded_at=time.time(), size=report.bytes, seconds=report.seconds),
    )
    return report


@contextlib.contextmanager
def _locked_for(plan: Plan) -> Iterator[Rotation]:
    """Lock the folder of a schedule, whose store may come into being later."""
    try:
        identity(plan.path)
    except StoreMovedError:
        raise  # Before the folder is created.
    except BackupError:
        pass  # The first attempt reports and records the error.
    with locked(plan.path, plan.folder) as rotation:
        yield rotation


def _first_due(rotation: Rotation, every: float) -> float:
    try:
        return due(rotation.newest(), every)
    except StoreMovedError:
        raise
    except BackupError:
        return 0.0  # The attempt reports and records the error.


def _attempt(plan: Plan, rotation: Rotation, every: float, say: Say) -> float:
    """Make one backup of a schedule; return the seconds until the next is due."""
    began, signalled = time.time(), threading.Event()
    try:
        rotated = _made(plan, rotation, signalled)
    except KeyboardInterrupt:
        raise _Stopped from None
    except StoreMovedError:
        raise
    except BackupError as exc:
        wait = min(every, _RETRY_SECONDS)
        warn(f"{exc}; next attempt at {_clock(time.time() + wait)}")
    else:
        # Backups that take longer than the interval follow each other without a pause.
        wait = min(max(0.0, began + every - time.time()), every)
        say(Outcome(rotated, datetime.fromtimestamp(time.time() + wait, UTC)))
    if signalled.is_set():
        raise _Stopped
    return wait


def _made(plan: Plan, rotation: Rotation, signalled: threading.Event) -> Rotated:
    made: list[Rotated] = []

    def work(report: Report) -> BackupReport:
        made.append(rotation.make(plan.keep, report))
        return made[0].report

    every = 0.0 if plan.every is None else plan.every
    with_progress(lambda report: recorded(plan.path, lambda: work(report), every=every), signalled)
    if made[0].problem:
        warn(made[0].problem)
    return made[0]


def _write(path: Path, record: BackupRecord) -> None:
    try:
        write_record(path, record)
    except OSError as exc:
        warn(f"the time of the backup cannot be recorded beside {path}: {explained(exc)}")


def _sleep_until(then: float) -> None:
    """Sleep until the wall clock has reached ``then``.

    The monotonic clock bounds that, because a clock that is set back must not stop the backups. It
    does not suffice, because it stands still while a machine sleeps.
    """
    end = time.monotonic() + then - time.time()
    while (left := min(then - time.time(), end - time.monotonic())) > 0:
        time.sleep(min(left, _LONGEST_SLEEP))


def _stop(number: int, frame: object) -> NoReturn:
    del number, frame
    raise _Stopped


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S} UTC"
