"""Audit writer: a destination that hangs or fails costs lines, which are counted, not time."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagastore_server.telemetry.audit_writer import (
    MAX_QUEUED,
    AuditWriter,
    FileDestination,
    StreamDestination,
)
from tests.support.waiting import until


class FullDisk:
    """Rejects what exceeds its room, as a full disk does."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.is_full = False

    def write(self, lines: bytes) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.lines += lines.splitlines()

    def close(self) -> None:
        pass


def writer_to(destination: FullDisk | StreamDestination | FileDestination) -> AuditWriter[str]:
    return AuditWriter(destination, lambda one: f"{one}\n", lambda lost: f"lost {lost}\n", list)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


async def test_destination_that_hangs_does_not_hold_the_caller(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = writer_to(StreamDestination(descriptor))
    line = "x" * 300
    sent = 2 * MAX_QUEUED
    for _ in range(sent):
        writer.put(line)  # Nobody reads the pipe, which holds 64 KiB.
    lost = writer.lost
    assert sent - MAX_QUEUED - 1000 <= lost <= sent - MAX_QUEUED
    received = b""
    while received.count(b"x\n") < sent - lost:
        received += os.read(reader, 65_536)
    writer.put("after")
    while b"after" not in received or b"lost" not in received:
        received += os.read(reader, 65_536)
    assert f"lost {lost}\n".encode() in received
    writer.close()
    os.close(descriptor)


async def test_full_disk_is_a_failure_until_lines_are_written_again() -> None:
    disk = FullDisk()
    writer = writer_to(disk)
    disk.is_full = True
    for number in range(5):
        writer.put(f"line-{number}")
    await until(lambda: writer.lost == 5)
    assert writer.failure == os.strerror(errno.ENOSPC)
    disk.is_full = False
    writer.put("after")
    await until(lambda: not writer.failure)
    writer.close()
    assert disk.lines == [b"after", b"lost 5"]
    assert writer.lost == 5


def test_lines_are_written_before_the_writer_ends(tmp_path: Path) -> None:
    writer = writer_to(FileDestination(tmp_path / "audit.log"))
    for number in range(5000):
        writer.put(str(number))
    writer.close()
    found = (tmp_path / "audit.log").read_text().splitlines()
    assert found == [str(number) for number in range(5000)]


def test_line_that_was_written_in_part_does_not_join_the_next(tmp_path: Path) -> None:
    import resource  # noqa: PLC0415 - not on Windows
    import signal  # noqa: PLC0415 - used here only

    path = tmp_path / "audit.log"
    destination = FileDestination(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        with pytest.raises(OSError, match="large"):
            destination.write(b"first line\nsecond line\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    destination.write(b"third line\n")
    destination.close()
    assert path.read_bytes() == b"first line\nthird line\n"


def test_line_of_a_killed_server_does_not_join_the_next(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(b"half a li")
    for line in (b"next\n", b"last\n"):
        destination = FileDestination(path)
        destination.write(line)
        destination.close()
    assert path.read_bytes() == b"half a li\nnext\nlast\n"


def test_line_that_cannot_be_rendered_costs_no_other_line() -> None:
    destination = FullDisk()

    def render(entry: str) -> str:
        if not entry:
            raise ValueError("a defect")
        return f"{entry}\n"

    writer = AuditWriter(destination, render, lambda lost: f"lost {lost}\n", list)
    for entry in ("first", "", "second"):
        writer.put(entry)
    writer.close()
    assert destination.lines == [b"first", b"second", b"lost 1"]
    assert writer.lost == 1
