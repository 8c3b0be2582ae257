"""The `sagastore-server` command line: settings, errors, exit statuses."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.conftest import ServerFactory
from tests.support.messages import message
from tests.support.server_process import STARTUP_SECONDS, clean_environment, serve_command


def run(
    tmp_path: Path, *options: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `serve`, which is expected to fail."""
    return subprocess.run(
        serve_command(*options),
        env=clean_environment(tmp_path) | (env or {}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=STARTUP_SECONDS,
    )


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """Expect exit status 1 with a one-line error, and return the line."""
    assert result.returncode == 1, result
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("sagastore-server: ")
    return line


DSN = "postgresql://me:secret@127.0.0.1:1/saga"


def test_serve_with_both_stores_starts_without_postgresql(
    server_process: ServerFactory,
) -> None:
    """The file holds every message, so it is served; the missing PostgreSQL is logged."""
    server = server_process(env={"SAGASTORE_POSTGRES": DSN}).start()
    assert "sqlite-only" in server.wait_for_event("serving")["store"]
    assert server.terminate() == 0
    assert "secret" not in "".join(server.stderr)


def test_serve_with_unreachable_postgresql_fails(tmp_path: Path) -> None:
    env = {"SAGASTORE_POSTGRES": DSN}
    line = refusal(run(tmp_path, "--listen", "127.0.0.1:0", env=env))
    assert "PostgreSQL" in line
    assert "secret" not in line


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.test:0"])
def test_serve_refuses_exposure_by_default(tmp_path: Path, address: str) -> None:
    line = refusal(run(tmp_path, "--listen", address))
    assert address in line
    assert "--allow-insecure" in line


def test_allow_insecure_permits_exposure(server_process: ServerFactory) -> None:
    server = server_process("--allow-insecure", "--listen", "0.0.0.0:0")
    assert server.start().address.startswith("0.0.0.0:")


def test_listen_on_foreign_address_fails(tmp_path: Path) -> None:
    line = refusal(run(tmp_path, "--allow-insecure", "--listen", "192.0.2.1:1"))
    assert "cannot listen on 192.0.2.1:1" in line


@pytest.mark.parametrize(
    "options",
    [
        ["--listen", "nonsense"],
        ["--listen", "127.0.0.1:65536"],
        ["--unknown"],
        ["--log-level", "loud"],
        ["--drain-seconds", "-1"],
        ["surplus"],
    ],
)
def test_invalid_options_are_refused(tmp_path: Path, options: list[str]) -> None:
    result = run(tmp_path, *options)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, " * 1000)
    assert str(text) in refusal(run(tmp_path, "--listen", "127.0.0.1:0", "--sqlite", str(text)))
    assert text.read_text() == "not a database, " * 1000


@pytest.mark.parametrize("name", ["missing/folder/saga.db", "."])
def test_unusable_file_path_is_refused(tmp_path: Path, name: str) -> None:
    refusal(run(tmp_path, "--listen", "127.0.0.1:0", "--sqlite", str(tmp_path / name)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("listen = ", "not valid TOML"),
        ("lisden = '127.0.0.1:1'", "lisden"),
        ("listen = 'nowhere'", "listen"),
        ("drain_seconds = 'soon'", "drain_seconds"),
    ],
)
def test_invalid_configuration_file_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    config = tmp_path / "saga.toml"
    config.write_text(content)
    line = refusal(run(tmp_path, "--config", str(config)))
    assert expected in line
    assert "secret" not in line


def test_missing_configuration_file_is_refused(tmp_path: Path) -> None:
    assert "nowhere.toml" in refusal(run(tmp_path, env={"SAGASTORE_CONFIG": "nowhere.toml"}))


def test_settings_precedence_of_sources(server_process: ServerFactory, tmp_path: Path) -> None:
    """The command line overrides the environment, which overrides the file."""
    config = tmp_path / "saga.toml"
    config.write_text(
        f"sqlite = '{(tmp_path / 'unused.db').as_posix()}'\nlog-level = 'debug'\nlisten = '[::1]:1'"
    )
    env = {"SAGASTORE_SQLITE": str(tmp_path / "unused-2.db"), "SAGASTORE_LOG_LEVEL": "INFO"}
    server = server_process("--config", str(config), env=env).start()
    assert server.sqlite.exists()
    assert sorted(tmp_path.glob("unused*")) == []


def test_default_file_is_in_the_data_directory(
    server_process: ServerFactory, tmp_path: Path
) -> None:
    server = server_process(env={"SAGASTORE_LISTEN": "127.0.0.1:0"})
    server.spawn(bare=True)
    serving = server.wait_for_event("serving")
    assert Path(serving["store"]).is_relative_to(tmp_path)
    assert stat.S_IMODE(Path(serving["store"]).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(serving["store"]).parent.stat().st_mode) == 0o700


def test_logs_are_json_and_hold_no_content(server_process: ServerFactory) -> None:
    server = server_process("--log-level", "debug").start()
    with server.channel() as channel:
        secret = message(content="a very private matter", metadata_json='{"k": "private too"}')
        StorageServiceStub(channel).Save(storage_pb2.SaveRequest(message=secret))
    assert server.terminate() == 0
    assert len(server.events) == len(server.stderr)
    assert "private" not in "".join(server.stderr)


def test_installed_command_prints_its_version() -> None:
    command = Path(sys.executable).with_name("sagastore-server")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("sagastore-server ")
