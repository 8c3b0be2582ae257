"""Where settings come from, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagastore_server.ops.address import Address
from sagastore_server.ops.settings import Settings, SettingsError, load


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*Settings.model_fields, "config"):
        monkeypatch.delenv(f"SAGASTORE_{name.upper()}", raising=False)


def file(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "saga.toml"
    path.write_text(content)
    return path


def test_defaults() -> None:
    settings = load()
    assert settings.listen == "127.0.0.1:50051"
    assert settings.sqlite.name == "sagastore.db"
    assert settings.sqlite.is_absolute()
    assert settings.postgres is None
    assert not settings.allow_insecure
    assert settings.drain_seconds == 30


def test_the_command_line_before_the_environment_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = file(tmp_path, "listen = 'file:1'\nsqlite = 'file.db'\ndrain-seconds = 3")
    monkeypatch.setenv("SAGASTORE_LISTEN", "environment:2")
    monkeypatch.setenv("SAGASTORE_SQLITE", "environment.db")
    monkeypatch.setenv("SAGASTORE_LOG_LEVEL", "")
    settings = load(config, listen="command:3", sqlite=None)
    assert settings.listen == "command:3"
    assert settings.sqlite == Path("environment.db")
    assert settings.drain_seconds == 3
    assert settings.log_level == "info"


def test_home_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGASTORE_SQLITE", "~/saga.db")
    assert load().sqlite == Path.home() / "saga.db"


def test_all_problems_are_told_in_one_line_without_values(tmp_path: Path) -> None:
    config = file(tmp_path, "drain_seconds = 'secret'\nunknown = 'secret'\npostgres = ['secret']")
    with pytest.raises(SettingsError) as caught:
        load(config, log_level="secret")
    told = str(caught.value)
    for name in ("drain_seconds", "unknown", "postgres", "log_level"):
        assert name in told
    assert "secret" not in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051, True),
        ("127.8.8.8:0", "127.8.8.8", 0, True),
        ("[::1]:1", "::1", 1, True),
        ("localhost:65535", "localhost", 65535, True),
        ("0.0.0.0:1", "0.0.0.0", 1, False),  # noqa: S104 - an address to be judged
        ("[::]:1", "::", 1, False),
        ("saga.example:443", "saga.example", 443, False),
    ],
)
def test_addresses(text: str, host: str, port: int, loopback: bool) -> None:
    address = Address.parse(text)
    assert address == (host, port)
    assert str(address) == text
    assert address.is_loopback is loopback


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "host:x", "host:65536", "::1:1", "a b:1", "unix:/x:1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        Address.parse(text)
