"""Connection strings: every parameter is honoured or refused by name, and no password is shown."""

from __future__ import annotations

import re
import string
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from sagastore_server.config.connection import Address, ConnectionParameters, Keepalive, resolve
from sagastore_server.config.connection_string import ConnectionStringError, parse
from sagastore_server.config.libpq import PARAMETERS
from sagastore_server.config.settings import SettingsError, load
from sagastore_server.postgresql.options import PostgreSQLOptions, display_address
from sagastore_server.security.masking import has_password, mask_password
from tests.postgresql.libpq import parameters, parsed
from tests.support.strategies import QUICK

BASE = "postgresql://me@h/db"


def refusal(text: str, **environment: str) -> str:
    with pytest.raises(ConnectionStringError) as caught:
        resolve(text, environment)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


# ------------------------------------------------------------------ every parameter of libpq


def test_every_parameter_of_libpq_is_known() -> None:
    found = {one.keyword: one for one in parameters()}
    # libpq 19 has it, too.
    assert found.keys() | {"servicefile"} == PARAMETERS.keys()
    for name, one in found.items():
        assert PARAMETERS[name].variable == one.variable
        # These keys are as good as a password, though libpq does not mark them.
        assert PARAMETERS[name].is_secret >= (one.is_secret or name.startswith("scram_"))


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_is_honoured_or_refused_by_name(name: str) -> None:
    """It changes the connection, or an error names it, or the documentation says it is no-op."""
    values = {
        "port": "6000", "service": "none", "connect_timeout": "7", "sslmode": "require",
        "keepalives": "0", "keepalives_idle": "77", "keepalives_interval": "7", "sslcert": "/c",
        "keepalives_count": "7", "tcp_user_timeout": "7", "target_session_attrs": "primary",
        "load_balance_hosts": "random", "options": "-c work_mem=1MB", "gsslib": "sspi",
        "sslnegotiation": "postgres", "ssl_min_protocol_version": "TLSv1.3", "servicefile": "/s",
        "ssl_max_protocol_version": "TLSv1.3", "fallback_application_name": "other",
    }  # fmt: skip
    value = values.get(name, "other")
    text = f"{BASE}?{name}={quote(value, safe='')}"
    if name == "servicefile":
        text += "&service=x"
    try:
        changed = resolve(text, {}) != resolve(BASE, {})
    except ConnectionStringError as exc:
        assert name in str(exc) or value in str(exc)  # noqa: PT017 - either is right
        return
    assert changed or name == "client_encoding"


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("sslmode", "reqire", "did you mean require?"),
        ("sslmode", "", None),
        ("channel_binding", "prefer", None),
        ("channel_binding", "disable", None),
        ("channel_binding", "require", "channel_binding in the connection string has a value that"),
        ("gssencmode", "require", "use TLS (sslmode) instead"),
        ("gssencmode", "prefer", None),
        ("hostaddr", "1.2.3.4", "hostaddr in the connection string is not supported; use host"),
        ("require_auth", "scram-sha-256", "require_auth in the connection string is not supported"),
        ("target_session_attrs", "standby", "because the server writes"),
        ("connect_timeout", "5", None),
        ("connect_timeout", "0", None),
        ("connect_timeout", "soon", "connect_timeout in the connection string must be a whole"),
        ("client_encoding", "UTF-8", None),
        ("client_encoding", "latin1", "must be UTF8"),
        ("sslnegotiation", "direct", "needs sslmode=require"),
        ("statement_timeout", "5", "use the setting postgres_statement_timeout"),
        ("default_transaction_isolation", "serializable", "that the server itself sets"),
        ("options", "-S 5", "options in the connection string must be like -c NAME=VALUE"),
        ("options", "-cstatement_timeout=5", "use the setting postgres_statement_timeout"),
        ("sslmod", "require", "unknown parameter sslmod; did you mean sslmode?"),
        ("channel_bindin", "x", "unknown parameter channel_bindin; did you mean channel_binding?"),
        ("work_mem", "1MB", None),
    ],
)
def test_value_is_accepted_or_refused(name: str, value: str, line: str | None) -> None:
    for text in (
        f"{BASE}?{name}={quote(value, safe='')}",
        f"host=h user=me dbname=db {name}='{value}'",
    ):
        if line is None:
            resolve(text, {})
        else:
            assert line in refusal(text)


def test_variables_of_libpq_are_honoured_or_refused_by_name() -> None:
    environment = {
        "PGHOST": "a,b", "PGPORT": "1,2", "PGUSER": "u", "PGPASSWORD": "p", "PGDATABASE": "d",
        "PGOPTIONS": "-c search_path=s", "PGAPPNAME": "n", "PGCONNECT_TIMEOUT": "3",
        "PGSSLMODE": "require", "PGCHANNELBINDING": "prefer",
    }  # fmt: skip
    found = resolve("postgresql://", environment)
    assert found.addresses == (Address("a", 1), Address("b", 2))
    assert (found.user, found.password, found.database) == ("u", "p", "d")
    assert dict(found.settings) == {"search_path": "s", "application_name": "n"}
    assert (found.connect_timeout, dict(found.tls)) == (3, {"sslmode": "require"})
    # The string takes precedence.
    assert resolve("postgresql://x@y:3/z", environment)[:2] == ((Address("y", 3),), "x")
    assert refusal("postgresql://", PGSSLMODE="of").startswith("PGSSLMODE must be disable, allow")
    assert refusal("postgresql://", PGREQUIREAUTH="md5").startswith("PGREQUIREAUTH is not")


def test_service_file(tmp_path: Path) -> None:
    file = tmp_path / "services"
    file.write_text("# comment\n[saga]\nhost=h\npassword=a%b'c \\d\nuser=u\n[other]\nsslmod=x\n")
    variables = {"PGSERVICEFILE": str(file), "PGUSER": "not this"}
    found = resolve("postgresql:///db?service=saga", variables)
    assert (found.user, found.password, found.address) == ("u", "a%b'c \\d", "h/db")
    assert resolve("user=x", {**variables, "PGSERVICE": "saga"}).user == "x"
    assert "is not defined in" in refusal("service=nope", **variables)
    line = f"{file} has an unknown parameter sslmod; did you mean sslmode?"
    assert refusal("service=other", **variables) == line
    file.write_text("[saga]\nhush hush\n")
    line = refusal("service=saga", **variables)
    assert "is not a service file" in line
    assert "hush" not in line


def test_keepalive_and_addresses() -> None:
    query = "keepalives_idle=9&tcp_user_timeout=1"
    found = resolve(f"postgresql://[::1]:5,h,%2Frun:6/?{query}", {})
    assert found.addresses == (Address("::1", 5), Address("h", 5432), Address("/run", 6))
    assert found.keepalive == Keepalive(idle=9, user_timeout=1)
    assert found.address.startswith("[::1]:5,h,/run:6/")
    for text in ("postgresql://h:0/", "postgresql://h:65536/", "host=h port=1,2", "host=@x"):
        refusal(text)


# ------------------------------------------------------------------ the syntax, compared with libpq

names = st.sampled_from(["user", "password", "dbname", "sslmode", "application_name", "options"])
texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="\x00"),
    min_size=1,
    max_size=12,
)


def _as_dict(text: str) -> dict[str, str]:
    return {one.name: one.value for one in parse(text)}


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


@given(st.dictionaries(names, texts, min_size=1))
def test_well_formed_strings_are_read_as_by_libpq(values: dict[str, str]) -> None:
    keywords = " ".join(f"{name} = {_quoted(value)}" for name, value in values.items())
    assert _as_dict(keywords) == parsed(keywords) == values
    user, password = values.get("user"), values.get("password")
    rest = {name: value for name, value in values.items() if name not in {"user", "password"}}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in rest.items())
    if user and password:
        uri = f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@h:1/?{query}"
        assert _as_dict(uri) == parsed(uri) == {**values, "host": "h", "port": "1"}


@given(st.text("ab =\\'", max_size=14))
@example("'' b=a")
@example(" \\=''")
def test_any_keyword_string_is_read_as_by_libpq_or_refused(text: str) -> None:
    written = f"user={text}"
    try:
        found = _as_dict(written)
    except ConnectionStringError:
        return
    known = {name: value for name, value in found.items() if name in PARAMETERS}
    if known == found:
        assert parsed(written) == found


@given(st.text("ab:@/?&=%41#", max_size=14))
def test_any_uri_is_read_as_by_libpq_or_refused(text: str) -> None:
    written = f"postgresql://{text}"
    try:
        found = _as_dict(written)
    except ConnectionStringError:
        return
    if found.keys() <= PARAMETERS.keys():
        theirs = parsed(written)
        assert theirs is None or {k: v for k, v in theirs.items() if v} == found


# ------------------------------------------------------------------ no password in any output

ALPHABET = string.ascii_letters + string.digits
runs = st.text(ALPHABET, min_size=9, max_size=16).filter(lambda text: len(set(text)) > 5)
specials = st.text(string.punctuation + " é", max_size=3)
passwords = st.lists(st.tuples(specials, runs, specials), min_size=1, max_size=3).map(
    lambda parts: "".join(map("".join, parts))
)


def _places(password: str) -> list[str]:
    encoded = quote(password, safe="")
    return [
        f"postgresql://me:{encoded}@h:1/db",
        f"postgresql://me:{password}@h:1/db",
        f"postgresql://me:{password}@h:1/db?sslmode=require",
        f"postgresql://me@h:1/db?password={encoded}",
        f"postgresql://me@h:1/db?password={password}",
        f"postgresql://me@h:1/db?pasword={password}",
        f"postgresql://me@h:1/db?sslmode={password}",
        f"mysql://me:{password}@h/db",
        f"host=h password={_quoted(password)} dbname=db",
        f"host=h password={password} dbname=db",
        f"host=h user= password={password}",
        f"password='{password}' host=h sslmod=x",
        f"host=h {password}",
        password,
    ]


def _outputs(dsn: str) -> list[str]:
    """Return everything that is shown about a connection string."""
    shown = [mask_password(dsn)] if is_valid(dsn) else []
    shown += [display_address(dsn), repr(PostgreSQLOptions(dsn)), repr(SecretStr(dsn))]
    try:
        # Both settings have the same shape, and their problems are collected.
        found = load(None, postgres=dsn, otlp_endpoint=dsn.replace("postgresql", "http", 1))
        shown += [repr(found), str(found), found.postgres.__repr__()]
    except SettingsError as exc:
        shown += [str(exc), repr(exc), repr(exc.problems), *traceback.format_exception(exc)]
    return shown


def is_valid(dsn: str) -> bool:
    try:
        found = resolve(dsn, {})
    except ConnectionStringError as exc:
        assert "\n" not in str(exc)  # noqa: PT017
        return False
    assert repr(found) == f"ConnectionParameters({found.address})"
    return isinstance(found, ConnectionParameters)


# Each example loads the settings many times.
@settings(max_examples=10 if QUICK else 500)
@given(passwords)
def test_no_part_of_a_password_is_shown(password: str) -> None:
    hidden = [part for part in re.findall(f"[{ALPHABET}]+", password) if len(part) >= 9]
    for dsn in _places(password):
        if dsn.startswith(("postgresql://me@h:", "postgresql://me:")):
            has_password(dsn)  # It answers for every string.
        shown = "\n".join(_outputs(dsn))
        assert [part for part in hidden if part in shown] == [], dsn


def test_password_is_found_wherever_it_is() -> None:
    for dsn in ("postgresql://u:p@h", "postgresql://h?password=p", "user=u password=p", "x:y"):
        assert has_password(dsn)
    for dsn in ("postgresql://u@h", "host=h user=u", "postgresql://h?passfile=/f"):
        assert not has_password(dsn)


@pytest.mark.parametrize("special", "@/?#")
def test_special_characters_are_hinted(special: str) -> None:
    line = refusal(f"postgresql://user:S3cr{special}hunter2@127.0.0.1:5432/db")
    assert f"{special} as %{ord(special):02X}" in line
    assert resolve(f"postgresql://u:a{quote(special, safe='')}b@h", {}).password == f"a{special}b"


def test_address_for_display() -> None:
    assert display_address("postgresql://u:p@h/db") == "h/db"
    assert display_address("postgresql://u:p@h:5432,k:6/db") == "h,k:6/db"
    assert display_address("postgresql://u:p@ss@h/db") == "the configured address"
