"""Interrupted imports and exports, and their resumption by the same command."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import termios
import time
from contextlib import closing
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.cli.command import Sagastore, assert_ledger, many, write_lines
from tests.cli.databases import legacy_database
from tests.conftest import ServerFactory
from tests.support.server_process import ServerProcess
from tests.support.waiting import eventually

COUNT = 5000

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")


def _export(cli: Sagastore) -> Path:
    path = cli.home / "export.jsonl"
    cli.ok("export", path)
    return path


def _end(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=seconds)
    assert "Traceback" not in stderr
    return process.returncode, stderr


def _position(cli: Sagastore) -> int:
    (path,) = cli.checkpoints
    read: int = json.loads(path.read_text(encoding="utf-8"))["state"]["counts"]["read"]
    return read


def _stored(cli: Sagastore) -> int:
    count: int = cli.json("ping")["stores"][0]["messages"]
    return count


def _followed(text: bytes) -> bytes:
    """Compress a text after which more can follow; gzip reads by the block, up to the last."""
    return gzip.compress(text) + bytes(io.DEFAULT_BUFFER_SIZE)


def _has_open(process: subprocess.Popen[str], path: Path) -> bool:
    return any(file.path == str(path) for file in psutil.Process(process.pid).open_files())


def _waiting_in(pipe: IO[str] | None) -> int:
    """Return the number of unread bytes of a pipe."""
    assert pipe is not None
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def _interrupt_export(cli: Sagastore, path: Path) -> None:
    """Interrupt an export in its middle; now and then one is too quick for that."""
    before = path.read_bytes() if path.exists() else None
    part = path.with_name(path.name + ".part")
    for _ in range(10):
        status, stderr = _interrupted(cli.start("export", path), part)
        if status == 130:
            assert "run the same command again to resume" in stderr
            assert (path.read_bytes() if path.exists() else None) == before
            return
        path.unlink()
        if before is not None:
            path.write_bytes(before)
    pytest.fail("no export could be interrupted")


def _interrupted(process: subprocess.Popen[str], part: Path) -> tuple[int, str]:
    eventually(lambda: process.poll() is not None or (part.exists() and part.stat().st_size))
    process.send_signal(signal.SIGINT)
    return _end(process)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_import_resumes_at_its_checkpoint(
    number: signal.Signals, own_cli: Sagastore, tmp_path: Path
) -> None:
    messages = many(COUNT)
    path = write_lines(tmp_path / "many.jsonl", messages)
    process = own_cli.start("import", path, "--batch-size", "100")
    eventually(lambda: own_cli.checkpoints)
    process.send_signal(number)
    status, stderr = _end(process)
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 128 + number
        assert "run the same command again to resume" in stderr
    position = _position(own_cli)
    assert 0 < position < COUNT

    done = own_cli.run("--json", "import", path)
    assert done.returncode == 0
    assert f"resuming after {position:,} messages" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["resumed_after"] == position
    assert summary["read"] == summary["saved"] + summary["unchanged"] == COUNT
    assert summary["rejected"] == 0
    assert own_cli.checkpoints == []
    assert_ledger(_export(own_cli), messages)


def test_import_survives_a_killed_server(running_server: ServerProcess, tmp_path: Path) -> None:
    cli = Sagastore(running_server.address, tmp_path)
    messages = many(COUNT)
    path = write_lines(tmp_path / "many.jsonl", messages)
    process = cli.start("--json", "import", path, "--batch-size", "100")
    eventually(lambda: cli.checkpoints)
    running_server.kill9()
    time.sleep(0.5)
    running_server.restart()
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    summary = json.loads(stdout)
    assert summary["saved"] + summary["unchanged"] == COUNT
    assert_ledger(_export(cli), messages)


def test_resumed_import_has_complete_rejects(own_cli: Sagastore, tmp_path: Path) -> None:
    messages = many(COUNT)
    path = tmp_path / "mixed.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, message in enumerate(messages):
            if number % 50 == 0:
                message = message | {"content": "\x00" if number % 100 else 5}  # noqa: PLW2901
            file.write(json.dumps(message) + "\n")
    rejects = tmp_path / "rejects.jsonl"
    args = ("import", path, "--rejects", rejects, "--batch-size", "100")
    positions = [0]
    for _ in range(2):
        process = own_cli.start(*args)
        eventually(lambda: own_cli.checkpoints and _position(own_cli) > positions[-1])
        positions.append(_position(own_cli))
        process.kill()
        _end(process)
    summary = own_cli.json(*args)
    assert summary["rejected"] == COUNT // 50
    keys = [json.loads(line)["source_key"] for line in rejects.read_text().splitlines()]
    assert keys == [f"line {number + 1}" for number in range(0, COUNT, 50)]


def test_checkpoint_is_ignored_after_a_change(
    running_server: ServerProcess, server_process: ServerFactory, tmp_path: Path
) -> None:
    cli = Sagastore(running_server.address, tmp_path)
    messages = many(COUNT)
    path = write_lines(tmp_path / "many.jsonl", messages)

    process = cli.start("import", path, "--batch-size", "100")
    eventually(lambda: cli.checkpoints)
    process.send_signal(signal.SIGINT)
    _end(process)
    (note,) = cli.checkpoints
    noted = note.read_bytes()
    done = cli.run("--json", "import", path, "--restart")
    assert "resuming" not in done.stderr
    assert json.loads(done.stdout)["resumed_after"] == 0

    # The server is another one now, without what was stored before.
    running_server.terminate()
    other = server_process(sqlite=tmp_path / "empty.db")
    other.address = running_server.address
    other.start()
    note.write_bytes(noted)
    done = cli.run("--json", "import", path)
    assert "lacks messages of the interrupted run" in done.stderr
    assert json.loads(done.stdout)["saved"] == COUNT
    assert_ledger(_export(cli), messages)

    # The file is another one now.
    note.write_bytes(noted)
    write_lines(path, messages[: COUNT // 2])
    done = cli.run("--json", "import", path)
    assert "has changed since the interrupted run" in done.stderr
    assert json.loads(done.stdout)["unchanged"] == COUNT // 2

    # The note is damaged.
    note.write_bytes(noted[: len(noted) // 2])
    assert cli.json("import", path)["unchanged"] == COUNT // 2


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_import_can_be_interrupted_while_a_pipe_is_idle(
    number: signal.Signals, compressed: bool, own_cli: Sagastore, tmp_path: Path
) -> None:
    messages = many(4000)
    path = write_lines(tmp_path / "many.jsonl", messages)
    text = path.read_bytes()
    sent = text[: len(text) * 3 // 4]
    reading, writing = os.pipe()
    process = own_cli.start("import", "-", "--batch-size", "100", stdin=reading)
    os.close(reading)
    try:
        with os.fdopen(writing, "wb", buffering=0, closefd=False) as file:
            file.write(_followed(sent) if compressed else sent)
        # Then there is nothing left to be read: rows are passed on by 256.
        rows = sent.count(b"\n") // 256 * 256
        eventually(lambda: _stored(own_cli) == rows // 100 * 100)
        process.send_signal(number)
        status, stderr = _end(process)
    finally:
        os.close(writing)
    assert status == 128 + number
    assert "importing the whole file again stores nothing twice" in stderr
    own_cli.ok("import", "-", stdin=text)
    assert_ledger(_export(own_cli), messages)


def test_import_can_be_interrupted_while_a_database_is_locked(
    own_cli: Sagastore, tmp_path: Path
) -> None:
    path = legacy_database(tmp_path / "memory.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        process = own_cli.start("import", path)
        eventually(lambda: _has_open(process, path))
        process.send_signal(signal.SIGINT)
        # It would give up after 30 s.
        status, stderr = _end(process, seconds=25)
    assert (status, stderr) == (130, "sagastore: interrupted\n")


def test_import_continues_without_a_checkpoint_folder(own_cli: Sagastore, tmp_path: Path) -> None:
    path = legacy_database(tmp_path / "memory.db")
    own_cli.env["XDG_STATE_HOME"] = str(path)
    assert own_cli.json("import", path)["saved"] == 3


def test_export_resumes_at_its_checkpoint(own_cli: Sagastore, tmp_path: Path) -> None:
    messages = many(COUNT)
    own_cli.ok("import", write_lines(tmp_path / "many.jsonl", messages))
    whole = _export(own_cli).read_bytes()
    path, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    path.write_text("the export before", encoding="utf-8")

    _interrupt_export(own_cli, path)
    # What a run that was killed wrote behind the place it noted does not count.
    with part.open("ab") as file:
        file.write(b'{"id": "half a li')

    done = own_cli.run("--json", "export", path)
    assert done.returncode == 0
    assert "resuming after" in done.stderr
    assert json.loads(done.stdout)["messages"] == COUNT
    assert path.read_bytes() == whole
    assert not list(tmp_path.glob("out.jsonl.*"))


def test_part_file_of_another_export_is_not_resumed(own_cli: Sagastore, tmp_path: Path) -> None:
    messages = many(COUNT)
    own_cli.ok("import", write_lines(tmp_path / "many.jsonl", messages))
    path, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    _interrupt_export(own_cli, path)
    data = bytearray(part.read_bytes())
    data[-100] ^= 1
    part.write_bytes(data)
    done = own_cli.run("export", path)
    assert "starting from the beginning" in done.stderr
    assert_ledger(path, messages)


def test_closed_output_pipe_is_not_an_error(own_cli: Sagastore, tmp_path: Path) -> None:
    own_cli.ok("import", write_lines(tmp_path / "many.jsonl", many(3000)))
    process = own_cli.start("export", "-")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_export_can_be_interrupted_while_its_pipe_is_blocked(
    number: signal.Signals, opened: bool, own_cli: Sagastore, tmp_path: Path
) -> None:
    own_cli.ok("import", write_lines(tmp_path / "many.jsonl", many(3000)))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    if opened:
        process = own_cli.start("export", "-")
        # There is more than a pipe holds, which is 64 KiB.
        eventually(lambda: _waiting_in(process.stdout) > 60_000)
    else:
        process = own_cli.start("export", pipe)
        eventually(lambda: psutil.Process(process.pid).net_connections("tcp"))
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert process.stderr is not None
    assert process.stderr.read().startswith("sagastore: interrupted; the output is incomplete")


def test_export_can_be_interrupted_before_the_first_response(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cli = Sagastore(f"127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        process = cli.start("export", tmp_path / "out.jsonl")
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            status, stderr = _end(process)
    assert status == 130
    assert stderr.startswith("sagastore: interrupted; 0 messages in ")
    assert "run the same command again to resume" in stderr


@pytest.mark.parametrize("count", [0, 3])
def test_export_writes_to_a_named_pipe(count: int, own_cli: Sagastore, tmp_path: Path) -> None:
    messages = many(count)
    imported = own_cli.run("import", write_lines(tmp_path / "many.jsonl", messages))
    assert imported.returncode == (0 if messages else 6)
    pipe, read = tmp_path / "pipe", tmp_path / "read.jsonl"
    os.mkfifo(pipe)
    process = own_cli.start("export", pipe)
    with pipe.open("rb") as file:
        read.write_bytes(file.read())
    status, _ = _end(process)
    assert status == 0
    assert_ledger(read, messages)


def test_full_disk_is_reported_in_one_line(own_cli: Sagastore) -> None:
    own_cli.ok("save", "--provider", "p", "--role", "r", "x")
    done = own_cli.run("export", "/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("sagastore: cannot write /dev/full: No space left")
