"""`sagastore-server config`: what is in force and why, and what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sagastore_server.cli.main import cli
from sagastore_server.config.settings import Settings
from sagastore_server.config.types import is_switch, kind
from tests.conftest import ServerFactory
from tests.support.server_process import STARTUP_SECONDS, clean_environment

DSN = "postgresql://me:hush@127.0.0.1:1/saga"
SHOWN_DSN = "postgresql://me:********@127.0.0.1:1/saga"
NUMBERS = {"N", "BYTES", "SECONDS", "SHARE"}
TEXTS = {
    "HOST:PORT": ["a:1", "b:2", "c:3"],
    "FILE": ["a.file", "b.file", "c.file"],
    "DSN,...": ["postgresql://a", "postgresql://a, postgresql://b", "postgresql://c"],
    "DSN": ["postgresql://a", "postgresql://b", "postgresql://c"],
    "URL": ["http://a", "http://b", "https://c"],
    "LEVEL": ["debug", "warning", "error"],
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("SAGASTORE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(*options: str) -> Result:
    return CliRunner().invoke(cli, ["config", *options])


def process(
    place: Path, *options: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `config` in a process, because its check configures logging."""
    return subprocess.run(
        [sys.executable, "-m", "sagastore_server", "config", *options],
        env=clean_environment(place) | (env or {}),
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        timeout=STARTUP_SECONDS,
    )


def shown(*options: str) -> dict[str, Any]:
    result = config("--json", *options)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def three_values(name: str) -> list[Any]:
    """Three values that the setting accepts with any other settings."""
    field = Settings.model_fields[name]
    if name == "workers":
        return [1, 1, 1]  # More contradict sqlite.
    if is_switch(field):
        return [True, False, True]
    metavar = kind(field).metavar
    if metavar not in NUMBERS:
        return TEXTS[metavar]
    limits = {key: getattr(part, key) for part in field.metadata for key in dir(part)}
    low: float = limits["ge"] if "ge" in limits else limits["gt"]
    step = 1 if field.annotation is int else 0.25
    return [low + step * (more + 1) for more in range(3)]


def as_toml(value: object) -> str:
    return json.dumps(value)


def as_option(name: str, value: object) -> str:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option}={value}"


def test_config_reports_the_source_of_every_setting(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line, then the environment, the file, and the default."""
    values = {name: three_values(name) for name in Settings.model_fields}
    lines = [f"{name.replace('_', '-')} = {as_toml(value[0])}" for name, value in values.items()]
    (place / "saga.toml").write_text("\n".join(lines))
    file = ("--config", "saga.toml")

    assert {row["origin"] for row in shown().values()} == {"default"}

    found = shown(*file)
    assert {name: row["value"] for name, row in found.items()} == {
        name: value[0] for name, value in values.items()
    }
    assert {(row["origin"], row["origin_name"]) for row in found.values()} == {
        ("file", "saga.toml")
    }

    for name, value in values.items():
        monkeypatch.setenv(f"SAGASTORE_{name.upper()}", str(value[1]))
    for name, row in shown(*file).items():
        assert row == {
            "value": values[name][1],
            "origin": "environment",
            "origin_name": f"SAGASTORE_{name.upper()}",
        }

    for name, row in shown(*file, *(as_option(n, v[2]) for n, v in values.items())).items():
        assert row == {"value": values[name][2], "origin": "command line", "origin_name": None}


def test_config_table_of_a_process(place: Path) -> None:
    (place / "saga.toml").write_text("max-calls = 7\notlp_endpoint = 'http://me:hush@collector'")
    env = {"SAGASTORE_CONFIG": "saga.toml", "SAGASTORE_POSTGRES": DSN + "?sslpassword=hush"}
    result = process(place, "--no-reflection", env=env)
    assert (result.returncode, result.stderr) == (0, "")
    assert "hush" not in result.stdout
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["SETTING", "VALUE", "ORIGIN"]
    assert [row.split()[0] for row in rows] == list(Settings.model_fields)
    assert len({len(row[: row.rindex("  ")]) for row in rows}) == 1
    found = {row.split()[0]: row.split(maxsplit=2)[1:] for row in rows}
    assert found["max_calls"] == ["7", "file saga.toml"]
    assert found["reflection"] == ["false", "command line"]
    assert found["otlp_endpoint"] == ["http://********@collector", "file saga.toml"]
    assert found["access"] == ["-", "default"]
    dsn = f"{SHOWN_DSN}?sslpassword=********"
    assert found["postgres"] == [dsn, "environment SAGASTORE_POSTGRES"]


def test_config_table_escapes_markup(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that looks like markup is printed unchanged."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    result = config("--sqlite", "[bold]x.db", "--postgres", DSN)
    assert "\x1b[" in result.stdout
    assert "[bold]x.db" in result.stdout
    assert SHOWN_DSN in result.stdout


def test_config_with_invalid_settings_fails(place: Path) -> None:
    (place / "saga.toml").write_text("listne = 'x'")
    result = config("--config", "saga.toml")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        "sagastore-server: invalid settings: listne: unknown setting; did you mean listen?\n"
    )
    assert config("--max-calls", "0").exit_code == 2


def test_check_reports_every_problem(place: Path) -> None:
    file = place / "saga.toml"
    file.write_text(f"listne = 'x'\npostgres = '{DSN}'\nmax-calls = 0\nlog_level = 'loud'")
    file.chmod(0o644)
    env = {"SAGASTORE_MAX_STREAMS": "many", "SAGASTORE_MAX_CALSL": "3"}
    result = process(place, "--check", "--config", "saga.toml", "--listen", "nowhere", env=env)
    assert result.returncode == 1
    assert (
        result.stdout
        == """\
listne: unknown setting; did you mean listen? (file saga.toml)
listen: 'nowhere' is not HOST:PORT, like 127.0.0.1:50051 or [::1]:50051 (command line)
max_calls: must be a whole number from 1 to 100000 (file saga.toml)
max_streams: must be a whole number from 1 to 10000 (environment SAGASTORE_MAX_STREAMS)
log_level: must be debug, info, warning or error (file saga.toml)
SAGASTORE_MAX_CALSL: unknown variable; did you mean SAGASTORE_MAX_CALLS? (environment)
warning: postgres: other users can read this password; run chmod o-r saga.toml (file saga.toml)
"""
    )


def test_check_warns_of_readable_secrets(place: Path) -> None:
    result = process(place, "--check", "--postgres", DSN)
    assert result.returncode == 0
    warning, good = result.stdout.splitlines()
    assert warning.startswith("warning: postgres: other users of this machine can see the password")
    assert good == "The settings are valid."
    assert "hush" not in result.stdout


def test_check_json_output(place: Path) -> None:
    bad = process(place, "--check", "--json", "--tls-key", "k")
    assert bad.returncode == 1
    assert json.loads(bad.stdout) == {
        "good": False,
        "problems": [
            {
                "setting": "tls_key",
                "problem": "needs tls_cert, the certificate of that key",
                "origin": "command line",
                "origin_name": None,
                "severity": "error",
            }
        ],
    }


def test_schema_output_is_json_schema() -> None:
    schema = json.loads(config("--schema").stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    assert schema["properties"]["max_calls"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 100_000,
        "default": 512,
        "description": Settings.model_fields["max_calls"].description,
    }


@pytest.mark.parametrize("command", ["serve", "config"])
def test_help_lists_every_setting(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    output = CliRunner().invoke(cli, [command, "--help"]).stdout
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')} " in output
    assert "--no-log-calls" in output
    assert "``" not in output


def test_serve_warns_of_unknown_settings_and_passwords(
    server_process: ServerFactory,
) -> None:
    server = server_process("--postgres", DSN, env={"SAGASTORE_MAX_CALSL": "3"}).start()
    assert server.terminate() == 0
    warnings = [event for event in server.events if event["event"] == "setting"]
    assert [event["level"] for event in warnings] == ["warning", "warning"]
    assert "did you mean SAGASTORE_MAX_CALLS?" in warnings[0]["problem"]
    assert warnings[1]["problem"].startswith(
        "postgres: other users of this machine can see the password"
    )
    assert "hush" not in "".join(server.stderr)
