"""Settings: sources, precedence, validation and reference."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.cli.settings_check import check
from sagastore_server.config.address import Address
from sagastore_server.config.connection import resolve_replica
from sagastore_server.config.connection_string import ConnectionStringError
from sagastore_server.config.reference import GROUPS, entries, json_schema
from sagastore_server.config.secrets import secrets_of
from sagastore_server.config.settings import Settings, SettingsError, load
from sagastore_server.config.sources import (
    CLIENT_VARIABLES,
    COMMAND_LINE,
    unknown_variables,
)
from sagastore_server.security.masking import mask_password
from scripts.write_configuration import PAGE, with_generated_table

ROOT = Path(__file__).parents[2]
FORWARD = {"forward": True, "postgres": "postgresql://db.example/db"}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SAGASTORE_"):
            monkeypatch.delenv(name)


def file(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "saga.toml"
    path.write_text(content)
    return path


def test_defaults_are_used_without_sources() -> None:
    settings = load()
    assert settings.listen == "127.0.0.1:50051"
    assert settings.sqlite.name == "sagastore.db"
    assert settings.sqlite.is_absolute()
    assert settings.postgres is None
    assert not settings.allow_insecure
    assert settings.drain_seconds == 30


def test_command_line_overrides_environment_overrides_file(
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


def test_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGASTORE_SQLITE", "~/saga.db")
    assert load().sqlite == Path.home() / "saga.db"


def test_error_lists_all_problems_without_values(tmp_path: Path) -> None:
    config = file(tmp_path, "drain_seconds = 'secret'\nunknown = 'secret'\npostgres = ['secret']")
    with pytest.raises(SettingsError) as caught:
        load(config, log_level="secret")
    message = str(caught.value)
    for name in ("drain_seconds", "unknown", "postgres", "log_level"):
        assert name in message
    assert "secret" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051, True),
        ("127.8.8.8:0", "127.8.8.8", 0, True),
        ("[::1]:1", "::1", 1, True),
        ("localhost:65535", "localhost", 65535, True),
        ("0.0.0.0:1", "0.0.0.0", 1, False),  # noqa: S104 - the address under test
        ("[::]:1", "::", 1, False),
        ("saga.example:443", "saga.example", 443, False),
    ],
)
def test_address_is_parsed(text: str, host: str, port: int, loopback: bool) -> None:
    address = Address.parse(text)
    assert address == (host, port)
    assert str(address) == text
    assert address.is_loopback is loopback


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "host:x", "host:65536", "::1:1", "a b:1", "unix:/x:1"]
)
def test_invalid_address_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tls_cert": "c"}, "tls_cert: needs tls_key"),
        ({"tls_key": "k"}, "tls_key: needs tls_cert"),
        ({"tls_client_ca": "ca"}, "tls_client_ca: needs tls_cert"),
        ({"postgres_pool_max": "3"}, "postgres_pool_max: postgres_pool_min (5) must not be more"),
        ({"postgres_pool_min": "30"}, "postgres_pool_min: postgres_pool_min (30) must not"),
        ({"ops_listen": "nowhere"}, "ops_listen: 'nowhere' is not HOST:PORT"),
        ({"otlp_endpoint": "collector:4317"}, "otlp_endpoint: must be a URL that begins"),
        ({"otlp_endpoint": "http://[::1"}, "otlp_endpoint: must be a URL that begins"),
        ({"postgres": "db password=hush"}, "postgres: must be like postgresql://"),
        ({"postgres_replicas": "postgresql://a"}, "postgres_replicas: needs postgres"),
        ({"max_calls": "0"}, "max_calls: must be a whole number from 1 to 100000"),
        ({"search_timeout": "0"}, "search_timeout: must be a number of seconds above 0, up to"),
        ({"shadow_share": "nan"}, "shadow_share: must be a number from 0 to 1"),
        ({"reflection": "perhaps"}, "reflection: must be true or false"),
        ({"sqlite": "~no-such-user/x"}, "sqlite: ~no-such-user/x begins with ~"),
        ({"forward": True}, "forward: needs postgres"),
        ({"advertise": "h:0"}, "advertise: must name a port"),
        ({**FORWARD, "forward_to": "h:0"}, "forward_to: must name a port"),
        ({**FORWARD, "forward_cert": "c"}, "forward_cert: forward_cert and forward_key need"),
        ({**FORWARD, "forward_cert": "c", "forward_key": "k"}, "forward_cert: needs forward_ca"),
    ],
)
def test_invalid_value_is_reported(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, **given)
    (problem,) = caught.value.problems
    assert str(problem).startswith(message)
    assert problem.origin == COMMAND_LINE
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:hush@a/saga,postgres://me@b:5433/saga",
        "postgresql://me:hush@a/saga\n  postgres://me@b:5433/saga\n",
        "['postgresql://me:hush@a/saga', 'host=b port=5433 user=me password=hush']",
    ],
)
def test_replicas_are_separated_or_a_list(tmp_path: Path, text: str) -> None:
    given: dict[str, str] = {"postgres": "postgresql://c"}
    config = file(tmp_path, f"postgres_replicas = {text}" if text.startswith("[") else "")
    if not text.startswith("["):
        given["postgres_replicas"] = text
    settings = load(config, **given)
    first, second = (one.get_secret_value() for one in settings.postgres_replicas)
    assert str(resolve_replica(first, {}).addresses[0]) == "a"
    assert str(resolve_replica(second, {}).addresses[0]) == "b:5433"
    assert "hush" in secrets_of(settings, {})
    assert "hush" not in f"{settings!r}"


@given(
    st.lists(st.text(), min_size=1, max_size=4),
    st.sampled_from([",", " ", "\n", ", ", " ,\t", ";"]),
)
def test_any_password_of_a_replica_is_kept_and_masked(passwords: list[str], between: str) -> None:
    # What a connection string refuses, in any setting, is not of interest here.
    usable = ["".join(filter(str.isprintable, password)) or "x" for password in passwords]
    written = [
        f"postgresql://me:{quote(password, safe='')}@host{number}/saga"
        for number, password in enumerate(usable)
    ]
    settings = load(postgres="host=a", postgres_replicas=between.join(written))
    found = [
        resolve_replica(one.get_secret_value(), {}).password for one in settings.postgres_replicas
    ]
    assert found == usable
    assert set(usable) <= set(secrets_of(settings, {}))
    assert [mask_password(one) for one in written] == [
        f"postgresql://me:********@host{number}/saga" for number in range(len(written))
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("postgresql://a,b/saga", "replica 1: the connection string has 2 hosts; give each"),
        ("postgresql://a postgresql://a:5432/x", "replica 2 is a, as replica 1 is; remove one"),
        ("postgresql:///saga?user=me", "replica 1: the connection string has no host; add"),
        ("postgresql://a nonsense=hush", "replica 1: host in the connection string is not a host"),
        ("postgresql://a?sslmod=require", "replica 1: the connection string has an unknown"),
        (
            "postgresql://a,postgresql://b?target_session_attrs=primary",
            "replica 2: target_session_attrs in the connection string must be any, standby,",
        ),
    ],
)
def test_invalid_replica_is_reported_by_its_number(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, postgres="postgresql://c", postgres_replicas=text)
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"postgres_replicas: {message}")
    assert "hush" not in str(problem)


def test_replica_is_one_host_of_any_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of the main connection string choose between its hosts."""
    environment = {"PGTARGETSESSIONATTRS": "primary", "PGUSER": "me", "PGPASSWORD": "hush"}
    found = resolve_replica("host=b target_session_attrs=standby", environment)
    assert (found.target, found.user, found.secrets) == ("any", "me", ("hush",))
    with pytest.raises(ConnectionStringError, match="has 2 hosts"):
        resolve_replica("user=me", {"PGHOST": "a,b"})


def test_forward_contradicts_sqlite() -> None:
    assert not load(None, **FORWARD).forwarding_conflict
    assert not load(None, sqlite="x.db", postgres="postgresql://h/db").forwarding_conflict
    text = "contradicts sqlite: the server with the file answers calls itself"
    assert text in load(None, sqlite="x.db", **FORWARD).forwarding_conflict
    (problem,) = check(None, {"sqlite": "x.db", "ops_listen": "off", **FORWARD})
    assert text in str(problem)


def test_every_contradiction_is_reported() -> None:
    with pytest.raises(SettingsError) as caught:
        load(tls_client_ca="ca", postgres_pool_min=21)
    message = {problem.setting for problem in caught.value.problems}
    assert message == {"tls_client_ca", "postgres_pool_min"}


def test_valid_combinations_are_accepted() -> None:
    settings = load(tls_cert="c", tls_key="k", tls_client_ca="ca", ops_listen="OFF")
    assert settings.ops_listen == "off"
    assert load(otlp_endpoint="https://collector.example:4317").otlp_endpoint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("listne = 1", "listne: unknown setting; did you mean listen?"),
        ("LOG-LEVEL = 'info'", "LOG-LEVEL: unknown setting; did you mean log_level?"),
        ("xyzzy = 1", "xyzzy: unknown setting"),
        (
            "[postgres]\npool-max = 3",
            "postgres: is a table, but settings have no groups; write postgres_pool_max = ...",
        ),
        (
            "[server]\nmax_calls = 3",
            "server: is a table, but settings have no groups; write max_calls = ...",
        ),
        ("log_level = 'info'\nlog-level = 'info'", "log-level: is set twice"),
        ("listen = 'a:1'\n\nsqlite = ", "at line 3, column"),
        ("sqlite = '''x\n\n", "at line 3, the end"),
        ("listen = 'a:1'\nlisten = 'b:2'", "at line 2"),
    ],
)
def test_invalid_file_is_reported(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(file(tmp_path, content))
    (problem,) = caught.value.problems
    assert message in str(problem)
    assert str(problem.origin) == f"file {tmp_path / 'saga.toml'}"


def test_file_that_is_no_text_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "saga.toml").write_bytes(b"sqlite = '\xff'")
    with pytest.raises(SettingsError, match="is not text in UTF-8"):
        load(tmp_path / "saga.toml")
    with pytest.raises(SettingsError, match="cannot read the configuration"):
        load(tmp_path)


def test_unknown_variables_are_reported_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "SAGASTORE_MAX_CALSL",
        "SAGASTORE_TARGT",
        "SAGASTORE_XYZZY",
        "SAGASTORE_TOKEN",
        "SAGASTORE_MAX_CALLS",
        "SAGASTORE_CONFIG",
        "SAGASTORE_TEST_PROFILE",
        "SAGASTORE_SERVICE_HOST",
        "SAGASTORE_SERVICE_PORT_GRPC",
        "SAGASTORE_PORT",
        "SAGASTORE_PORT_50051_TCP_ADDR",
    ):
        monkeypatch.setenv(name, "1")
    assert [str(problem) for problem in unknown_variables(Settings)] == [
        "SAGASTORE_MAX_CALSL: unknown variable; did you mean SAGASTORE_MAX_CALLS?",
        "SAGASTORE_TARGT: unknown variable; did you mean SAGASTORE_TARGET?",
        "SAGASTORE_XYZZY: unknown variable",
    ]


def test_variables_of_the_client_are_known() -> None:
    """The server must not import the client's command, so both have the names."""
    sources = (ROOT / "client/sagastore").rglob("*.py")
    used = {
        name
        for source in sources
        for name in re.findall(r"SAGASTORE_[A-Z_]+", source.read_text(encoding="utf-8"))
    }
    assert used == CLIENT_VARIABLES


def test_every_setting_has_a_description_and_a_group() -> None:
    described = list(entries(Settings))
    assert [entry.name for entry in described if not entry.meaning] == []
    assert [entry.name for entry in described if entry.metavar == "VALUE"] == []
    assert list(dict.fromkeys(entry.group for entry in described)) == list(GROUPS.values())


def test_configuration_page_is_up_to_date() -> None:
    """If not: make docs."""
    page = PAGE.read_text(encoding="utf-8")
    assert with_generated_table(page) == page


def test_schema_has_the_validated_bounds() -> None:
    schema = json_schema(Settings)
    assert set(Settings.model_fields) <= set(schema["properties"])
    for name in Settings.model_fields:
        property_ = schema["properties"][name]
        assert property_["description"]
        assert property_["type"] in {"string", "integer", "number", "boolean", "array"}
        assert ("items" in property_) == (property_["type"] == "array")
        if property_["type"] in {"integer", "number"}:
            assert {"minimum", "exclusiveMinimum"} & set(property_)
            assert property_["default"] <= property_["maximum"]
            below = (
                property_["exclusiveMinimum"]
                if "exclusiveMinimum" in property_
                else property_["minimum"] - 1
            )
            for value in (property_["maximum"] + 1, below):
                with pytest.raises(SettingsError, match=f"{name}: must be"):
                    load(**{name: value})
        if "_" in name:
            dashed = schema["properties"][name.replace("_", "-")]
            assert dashed == {"$ref": f"#/properties/{name}"}


def test_check_finds_missing_files(tmp_path: Path) -> None:
    given = {"tls_cert": "nowhere.pem", "tls_key": str(tmp_path), "sqlite": "no/folder/x.db"}
    assert [str(problem) for problem in check(None, given)] == [
        "tls_cert: nowhere.pem does not exist",
        f"tls_key: {tmp_path} is a folder, not a file",
        "sqlite: no/folder/x.db cannot be created: folder no/folder does not exist",
    ]


def test_check_reads_the_access_file(tmp_path: Path) -> None:
    (problem,) = check(None, {"access": str(file(tmp_path, "nonsense"))})
    assert problem.setting == "access"
    assert not problem.is_warning


def test_check_finds_a_public_address() -> None:
    (problem,) = check(None, {"listen": "0.0.0.0:1"})
    assert str(problem).startswith("listen: 0.0.0.0:1 can be reached from other machines")
    assert check(None, {"listen": "0.0.0.0:1", "allow_insecure": True}) == []


def test_check_finds_an_exposed_ops_port() -> None:
    (problem,) = check(None, {"ops_listen": "0.0.0.0:1"})
    assert str(problem).startswith("ops_listen: 0.0.0.0:1 can be reached from other machines")
    assert "--ops-allow-insecure" in str(problem)
    for accepted in ("ops_allow_insecure", "allow_insecure"):
        assert check(None, {"ops_listen": "0.0.0.0:1", accepted: True}) == []
    # The decision about the ops port is none about the calls.
    (problem,) = check(None, {"listen": "0.0.0.0:1", "ops_allow_insecure": True})
    assert problem.setting == "listen"


def test_check_warns_of_a_readable_password_of_a_replica(tmp_path: Path) -> None:
    lines = "postgres = 'postgresql://c'\npostgres_replicas = ['host=b', 'host=a password=hush']"
    config = file(tmp_path, lines)
    config.chmod(0o644)
    (problem,) = check(config, {})
    assert str(problem) == (
        f"postgres_replicas: other users can read this password; run chmod o-r {config}"
    )
    given = {"postgres": "host=c", "postgres_replicas": "postgresql://me:hush@a"}
    (problem,) = check(None, given)
    assert problem.is_warning
    assert "use SAGASTORE_POSTGRES_REPLICAS" in str(problem)


@pytest.mark.parametrize(("mode", "warnings"), [(0o644, 1), (0o640, 0), (0o600, 0)])
def test_check_warns_of_a_readable_password(tmp_path: Path, mode: int, warnings: int) -> None:
    config = file(tmp_path, "postgres = 'postgresql://me:hush@db/saga'")
    config.chmod(mode)
    problems = check(config, {})
    assert len(problems) == warnings
    assert all(problem.is_warning and "hush" not in str(problem) for problem in problems)
    # An override does not remove it from the file.
    assert check(config, {"postgres": "postgresql://me@db/saga"}) == problems


def test_check_warns_of_a_readable_private_key(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("x")
    key.chmod(0o644)
    problems = check(None, {"tls_cert": str(key), "tls_key": str(key)})
    (warning,) = (problem for problem in problems if problem.is_warning)
    assert str(warning) == f"tls_key: other users can read {key}; run chmod o-r on it"
