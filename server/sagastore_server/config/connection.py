"""Parameters of a connection to PostgreSQL, from connection string, service file and variables.

Precedence as in libpq: connection string, service file, environment, default. Every parameter of
libpq is honoured, or refused by name (`libpq`).
"""

from __future__ import annotations

import configparser
import getpass
import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from sagastore_server.config.connection_string import ConnectionStringError, Written, parse
from sagastore_server.config.libpq import OWN_SETTINGS, PARAMETERS

DEFAULT_PORT = 5432
DEFAULT_HOSTS = ("/run/postgresql", "/var/run/postgresql", "/tmp", "localhost")  # noqa: S108 - libpq's
"""Folders of sockets, then the host, that are tried if no host is set."""

_TLS = (
    "sslmode",
    "sslnegotiation",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslrootcert",
    "sslcrl",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "krbsrvname",
    "gsslib",
)
"""Parameters that the driver implements, with the semantics of libpq."""

_HOST = re.compile(r"[\w.:%-]+")

_TARGET = "target_session_attrs"
_REPLICA_TARGETS = ("any", "standby", "prefer-standby", "read-only")
_CHOICES = ("PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS")
"""Variables that choose between the hosts of ``postgres``."""

_STRING = "in the connection string"
_SERVICE = "in the service file"


class Address(NamedTuple):
    """Address of one PostgreSQL server."""

    host: str
    """A host name, an IP address, or the folder of a Unix socket."""
    port: int

    def __str__(self) -> str:
        """Return it as in a URI, without the default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORT else f"{host}:{self.port}"


class Keepalive(NamedTuple):
    """Detection of a peer that does not answer, on TCP connections. 0 is the system's default."""

    enabled: bool = True
    idle: int = 15
    """Seconds without traffic before the first probe."""
    interval: int = 5
    """Seconds between two probes."""
    probes: int = 3
    """Probes without an answer after which the connection is lost: 30 s in all."""
    user_timeout: int = 20_000
    """Milliseconds that data which was sent may be unacknowledged (TCP_USER_TIMEOUT)."""


class ConnectionParameters(NamedTuple):
    """Parameters of a connection to PostgreSQL, complete and valid."""

    addresses: tuple[Address, ...]
    """Servers that are tried in this order."""
    user: str
    password: str | None
    """A secret."""
    database: str
    passfile: str | None
    tls: Mapping[str, str]
    """Parameters of TLS and GSSAPI, by name. ``sslpassword`` is a secret."""
    settings: Mapping[str, str]
    """Settings of PostgreSQL for each session, by name."""
    connect_timeout: int | None
    """Seconds for establishing a connection to one address; None: no limit of its own."""
    keepalive: Keepalive
    target: str
    """``target_session_attrs``: any, primary or read-write."""
    shuffled: bool
    """Whether the addresses are tried in random order."""
    has_host: bool
    """Whether the addresses are configured, not defaults."""

    def __repr__(self) -> str:
        """Omit everything that may be a secret."""
        return f"ConnectionParameters({self.address})"

    @property
    def address(self) -> str:
        """Hosts, ports and database, for display."""
        shown = self.addresses if self.has_host else self.addresses[-1:]
        return f"{','.join(map(str, shown))}/{self.database}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """The passwords."""
        return tuple(filter(None, (self.password, self.tls.get("sslpassword"))))


class _Value(NamedTuple):
    text: str
    origin: str
    """Parameter and source, for errors."""


def resolve(text: str, environment: Mapping[str, str]) -> ConnectionParameters:
    """Return the parameters of a connection string, completed from the other sources.

    Args:
        text: A URI or a keyword string.
        environment: Variables such as PGHOST.

    Raises:
        ConnectionStringError: A parameter is malformed, unknown or unsupported.

    """
    return _resolved(parse(text), environment)


def resolve_replica(text: str, environment: Mapping[str, str]) -> ConnectionParameters:
    """Return the parameters of a connection to a read replica: to one server, whatever its role.

    Args:
        text: A URI or a keyword string. ``target_session_attrs`` may only name roles of a standby.
        environment: Variables such as PGHOST; the choice between several hosts is ignored.

    Raises:
        ConnectionStringError: As `resolve`, or it names no host or several.

    """
    written = parse(text)
    for one in written:
        if one.name == _TARGET and one.value not in _REPLICA_TARGETS:
            raise ConnectionStringError(
                f"{_TARGET} {_STRING} must be {', '.join(_REPLICA_TARGETS[:-1])} or "
                f"{_REPLICA_TARGETS[-1]}, because a replica is a standby"
            )
    known = {name: value for name, value in environment.items() if name not in _CHOICES}
    found = _resolved([one for one in written if one.name != _TARGET], known)
    if not found.has_host:
        raise ConnectionStringError("the connection string has no host; add that of the replica")
    if len(found.addresses) > 1:
        raise ConnectionStringError(
            f"the connection string has {len(found.addresses)} hosts; give each replica a "
            "connection string of its own"
        )
    return found._replace(target="any", shuffled=False)


def _resolved(written: list[Written], environment: Mapping[str, str]) -> ConnectionParameters:
    values: dict[str, _Value] = {}
    settings: dict[str, str] = {}
    _add(values, settings, written, _STRING)
    if service := _named_service(values, environment):
        _add(values, settings, _service_parameters(service, values, environment), _SERVICE)
    for name, parameter in PARAMETERS.items():
        default = environment.get(parameter.variable or "", "")
        if default and name not in values:
            values[name] = _Value(default, str(parameter.variable))
    for name, value in values.items():
        problem = PARAMETERS[name].check(value.text)
        if problem:
            raise ConnectionStringError(f"{value.origin} {problem}")
    return _assembled(values, settings)


def _add(
    values: dict[str, _Value], settings: dict[str, str], found: list[Written], source: str
) -> None:
    """Add parameters of one source; those that are there already take precedence."""
    own: dict[str, _Value] = {}
    for one in found:
        if one.name in PARAMETERS:
            # The last of several counts, as in libpq.
            own[one.name] = _Value(one.value, f"{one.name} {source}")
        elif one.name not in settings:
            settings[one.name] = _allowed(one.name, one.value, source)
    for name, value in own.items():
        values.setdefault(name, value)


def _allowed(name: str, value: str, source: str) -> str:
    if name in OWN_SETTINGS:
        raise ConnectionStringError(
            f"{name} {source} is a setting that the server itself sets; {OWN_SETTINGS[name]}"
        )
    return value


def _assembled(values: Mapping[str, _Value], settings: dict[str, str]) -> ConnectionParameters:
    def text(name: str, default: str = "") -> str:
        return values[name].text if name in values else default

    if "options" in values:
        for name, value in _options(values["options"]):
            source = f"in {values['options'].origin}"
            settings.setdefault(name, _allowed(name, value, source))
    settings["application_name"] = text(
        "application_name", text("fallback_application_name", "sagastore")
    )
    user = text("user") or _system_user()
    timeout = int(text("connect_timeout", "0"))
    return ConnectionParameters(
        _addresses(values),
        user,
        text("password") or None,
        text("dbname") or user,
        text("passfile") or None,
        MappingProxyType(_tls(values)),
        MappingProxyType(settings),
        timeout if timeout > 0 else None,
        _keepalive(values),
        text("target_session_attrs", "any"),
        text("load_balance_hosts") == "random",
        "host" in values,
    )


def _keepalive(values: Mapping[str, _Value]) -> Keepalive:
    usual = Keepalive()

    def number(name: str, default: int) -> int:
        return int(values[name].text) if name in values else default

    return Keepalive(
        number("keepalives", 1) == 1,
        number("keepalives_idle", usual.idle),
        number("keepalives_interval", usual.interval),
        number("keepalives_count", usual.probes),
        number("tcp_user_timeout", usual.user_timeout),
    )


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise ConnectionStringError("the connection string has no user; add it") from None


# -------------------------------------------------------------------- addresses


def _addresses(values: Mapping[str, _Value]) -> tuple[Address, ...]:
    hosts = list(DEFAULT_HOSTS)
    if "host" in values:
        origin = values["host"].origin
        hosts = [_host(host, origin) for host in values["host"].text.split(",")]
    ports = [DEFAULT_PORT]
    if "port" in values:
        origin = values["port"].origin
        ports = [_port(port, origin) for port in values["port"].text.split(",")]
        if len(ports) not in {1, len(hosts)}:
            raise ConnectionStringError(
                f"{origin} must be one port, or as many as there are hosts ({len(hosts)})"
            )
    if len(ports) == 1:
        ports *= len(hosts)
    return tuple(map(Address, hosts, ports))


def _host(text: str, origin: str) -> str:
    host = text.strip()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if host.startswith("@"):
        raise ConnectionStringError(
            f"{origin} is an abstract Unix socket, which is not supported; use a folder"
        )
    if host.startswith("/"):
        return host
    try:
        # What the resolver does, so that it cannot fail there.
        usable = not host or bool(_HOST.fullmatch(host) and host.encode("idna"))
    except UnicodeError:
        usable = False
    if not usable:
        raise ConnectionStringError(
            f"{origin} is not a host name, an IP address or a folder; correct it"
        )
    return host or "localhost"


def _port(text: str, origin: str) -> int:
    digits = text.strip() or str(DEFAULT_PORT)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 0 < int(digits) < 65536):
        raise ConnectionStringError(f"{origin} is not a number from 1 to 65535; correct it")
    return int(digits)


# -------------------------------------------------------------------- TLS


def _tls(values: Mapping[str, _Value]) -> dict[str, str]:
    found = {name: values[name].text for name in _TLS if name in values}
    if found.get("sslrootcert") == "system":
        _use_system_roots(values, found)
    if found.get("sslnegotiation") == "direct" and found.get("sslmode") not in {
        "require",
        "verify-ca",
        "verify-full",
    }:
        raise ConnectionStringError(
            f"{values['sslnegotiation'].origin} is direct, which needs sslmode=require, verify-ca "
            "or verify-full"
        )
    return found


def _use_system_roots(values: Mapping[str, _Value], found: dict[str, str]) -> None:
    """Replace ``sslrootcert=system`` by the file, which is what the driver understands."""
    origin = values["sslrootcert"].origin
    if found.setdefault("sslmode", "verify-full") != "verify-full":
        raise ConnectionStringError(f"{origin} is system, which needs sslmode=verify-full")
    file = ssl.get_default_verify_paths().cafile
    if file is None:
        raise ConnectionStringError(
            f"{origin} is system, but this system has no file of trusted certificates; name one"
        )
    found["sslrootcert"] = file


# -------------------------------------------------------------------- options


def _options(given: _Value) -> Iterator[tuple[str, str]]:
    """Yield the settings of ``-c name=value --name=value``.

    Raises:
        ConnectionStringError: There is another option.

    """
    words = _words(given.text)
    for word in words:
        if word == "-c":
            setting = next(words, "")
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            setting = f"{name.replace('-', '_')}{equals}{value}"
        elif word.startswith("-c"):
            setting = word[2:]
        else:
            setting = ""
        name, equals, value = setting.partition("=")
        if not equals or not name.replace("_", "").replace(".", "").isalnum():
            raise ConnectionStringError(
                f"{given.origin} must be like -c NAME=VALUE; in a URI, write = as %3D and a space "
                "as %20"
            )
        yield name.lower(), value


def _words(text: str) -> Iterator[str]:
    """Split a text at spaces; a backslash takes the meaning from the next character."""
    word, escaped = "", False
    for character in text:
        if escaped:
            word, escaped = word + character, False
        elif character == "\\":
            escaped = True
        elif not character.isspace():
            word += character
        elif word:
            yield word
            word = ""
    if word:
        yield word


# -------------------------------------------------------------------- service file


def _named_service(values: Mapping[str, _Value], environment: Mapping[str, str]) -> _Value | None:
    if "service" in values:
        return values["service"]
    name = environment.get("PGSERVICE", "")
    return _Value(name, "PGSERVICE") if name else None


def _service_parameters(
    service: _Value, values: Mapping[str, _Value], environment: Mapping[str, str]
) -> list[Written]:
    """Return the parameters of a service.

    Raises:
        ConnectionStringError: No file defines the service, or its definition is malformed.

    """
    files = list(_service_files(values, environment))
    for file in files:
        # Without interpolation, because passwords contain percent signs.
        parser = configparser.RawConfigParser(
            delimiters="=", comment_prefixes="#", strict=False, default_section=""
        )
        try:
            parser.read_string(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise ConnectionStringError(f"cannot read {file}: {exc.strerror}") from None
        except (configparser.Error, UnicodeDecodeError):
            # The error quotes lines of the file, which may be passwords.
            raise ConnectionStringError(
                f"{file} is not a service file: expected lines [NAME] and NAME=VALUE"
            ) from None
        if parser.has_section(service.text):
            return _checked(parser.items(service.text), file)
    searched = " or ".join(map(str, files)) or "any file"
    raise ConnectionStringError(f"{service.origin} is not defined in {searched}")


def _checked(items: list[tuple[str, str]], file: Path) -> list[Written]:
    found = []
    for name, value in items:
        if name == "service" or not name.replace("_", "").isalnum():
            raise ConnectionStringError(f"{file} has a parameter that is not allowed there")
        try:
            found += parse(f"{name}='{_quoted(value)}'") if value else []
        except ConnectionStringError as exc:
            line = str(exc).replace("the connection string", str(file))
            raise ConnectionStringError(line) from None
    return found


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def _service_files(values: Mapping[str, _Value], environment: Mapping[str, str]) -> Iterator[Path]:
    named = values["servicefile"].text if "servicefile" in values else ""
    named = named or environment.get("PGSERVICEFILE", "")
    if named:
        yield Path(named)
    else:
        home = environment.get("HOME") or environment.get("USERPROFILE")
        if home:
            yield Path(home) / ".pg_service.conf"
    folder = environment.get("PGSYSCONFDIR", "")
    if folder:
        yield Path(folder) / "pg_service.conf"
