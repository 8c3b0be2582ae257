"""Parameters of libpq: their environment variables, and their values that SagaStore honours.

The driver (asyncpg) knows only a part of the parameters, ignores some variables, and sends names
that it does not know to PostgreSQL as settings. So every parameter is listed here, by the names of
the PostgreSQL documentation ("Parameter Key Words", PostgreSQL 18).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_OFF = ("0", "false", "no", "off")
_SESSION_ATTRIBUTES = ("any", "primary", "read-write")

Check = Callable[[str], str | None]
"""Returns why a value is refused, as it follows the parameter's name; None if it is not."""


class Parameter(NamedTuple):
    """A parameter of libpq."""

    variable: str | None
    """Its environment variable."""
    check: Check
    honoured: bool
    """Whether the parameter is passed on. The accepted values of the others change nothing."""
    is_secret: bool = False


def similar(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that ``name`` is probably meant to be."""
    return next(iter(difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8)), None)


def _any(_: str) -> None:
    """Accept every value."""


def _one_of(*values: str) -> Check:
    def check(value: str) -> str | None:
        if value in values:
            return None
        # Without the value, which may be a part of a password in the wrong place.
        meant = similar(value, values)
        hint = f"; did you mean {meant}?" if meant else ""
        return f"must be {', '.join(values[:-1])} or {values[-1]}{hint}"

    return check


def _whole_number(low: int, high: int) -> Check:
    def check(value: str) -> str | None:
        text = value.removeprefix("-")
        usable = text.isascii() and text.isdigit() and len(text) <= 10
        if usable and low <= int(value) <= high:
            return None
        return f"must be a whole number from {low} to {high}"

    return check


def _only(advice: str, *values: str) -> Check:
    def check(value: str) -> str | None:
        if value.lower() in values:
            return None
        return f"{'has a value that ' if values else ''}is not supported{advice}"

    return check


def _target(value: str) -> str | None:
    if value in {"standby", "prefer-standby", "read-only"}:
        return "must be any, primary or read-write, because the server writes"
    return _one_of(*_SESSION_ATTRIBUTES)(value)


def _encoding(value: str) -> str | None:
    folded = value.lower().replace("-", "").replace("_", "")
    return None if folded in {"utf8", "unicode", "auto"} else "must be UTF8"


def _honoured(variable: str | None, check: Check = _any, *, is_secret: bool = False) -> Parameter:
    return Parameter(variable, check, honoured=True, is_secret=is_secret)


def _fixed(variable: str | None, advice: str, *values: str, is_secret: bool = False) -> Parameter:
    return Parameter(variable, _only(advice, *values), honoured=False, is_secret=is_secret)


_SECONDS = _whole_number(0, 2_147_483)
_PREFER_VERIFY = (
    "; sslmode=verify-full also proves that the peer is the right server, so use that, and "
    "channel_binding=prefer or none"
)

PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        "host": _honoured("PGHOST"),
        "port": _honoured("PGPORT"),
        "dbname": _honoured("PGDATABASE"),
        "user": _honoured("PGUSER"),
        "password": _honoured("PGPASSWORD", is_secret=True),
        "passfile": _honoured("PGPASSFILE"),
        "service": _honoured("PGSERVICE"),
        "servicefile": _honoured("PGSERVICEFILE"),
        "connect_timeout": _honoured("PGCONNECT_TIMEOUT", _whole_number(-1, 3600)),
        "options": _honoured("PGOPTIONS"),
        "application_name": _honoured("PGAPPNAME"),
        "fallback_application_name": _honoured(None),
        "client_encoding": Parameter("PGCLIENTENCODING", _encoding, honoured=False),
        "keepalives": _honoured(None, _one_of("0", "1")),
        "keepalives_idle": _honoured(None, _SECONDS),
        "keepalives_interval": _honoured(None, _SECONDS),
        "keepalives_count": _honoured(None, _whole_number(0, 127)),
        "tcp_user_timeout": _honoured(None, _whole_number(0, 2_147_483_647)),
        "target_session_attrs": _honoured("PGTARGETSESSIONATTRS", _target),
        "load_balance_hosts": _honoured("PGLOADBALANCEHOSTS", _one_of("disable", "random")),
        "sslmode": _honoured("PGSSLMODE", _one_of(*SSL_MODES)),
        "sslnegotiation": _honoured("PGSSLNEGOTIATION", _one_of("postgres", "direct")),
        "sslcert": _honoured("PGSSLCERT"),
        "sslkey": _honoured("PGSSLKEY"),
        "sslpassword": _honoured(None, is_secret=True),
        "sslrootcert": _honoured("PGSSLROOTCERT"),
        "sslcrl": _honoured("PGSSLCRL"),
        "ssl_min_protocol_version": _honoured("PGSSLMINPROTOCOLVERSION", _one_of(*TLS_VERSIONS)),
        "ssl_max_protocol_version": _honoured("PGSSLMAXPROTOCOLVERSION", _one_of(*TLS_VERSIONS)),
        "krbsrvname": _honoured("PGKRBSRVNAME"),
        "gsslib": _honoured("PGGSSLIB", _one_of("gssapi", "sspi")),
        # The driver always behaves as with these values.
        "channel_binding": _fixed("PGCHANNELBINDING", _PREFER_VERIFY, "disable", "prefer"),
        "gssencmode": _fixed(
            "PGGSSENCMODE", "; use TLS (sslmode) instead of GSSAPI encryption", "disable", "prefer"
        ),
        "gssdelegation": _fixed("PGGSSDELEGATION", "; use 0", *_OFF),
        "sslcompression": _fixed("PGSSLCOMPRESSION", "; use 0", "0"),
        "sslsni": _fixed("PGSSLSNI", "; use 1", "1"),
        "sslcertmode": _fixed("PGSSLCERTMODE", "; use allow", "allow"),
        "sslcrldir": _fixed("PGSSLCRLDIR", "; use sslcrl, with a file"),
        "sslkeylogfile": _fixed(None, "; use the variable SSLKEYLOGFILE"),
        "hostaddr": _fixed("PGHOSTADDR", "; use host, with the address"),
        "requirepeer": _fixed("PGREQUIREPEER", "; use a folder that only PostgreSQL can write to"),
        "require_auth": _fixed("PGREQUIREAUTH", "; use sslmode=verify-full"),
        "replication": _fixed(None, "; use false", *_OFF),
        "min_protocol_version": _fixed("PGMINPROTOCOLVERSION", "; use 3.0", "3.0"),
        "max_protocol_version": _fixed(
            "PGMAXPROTOCOLVERSION", "; use latest", "3.0", "3.2", "latest"
        ),
        "scram_client_key": _fixed(None, "; use password or passfile", is_secret=True),
        "scram_server_key": _fixed(None, "; use password or passfile", is_secret=True),
        "oauth_issuer": _fixed(None, "; use a password or a certificate"),
        "oauth_client_id": _fixed(None, "; use a password or a certificate"),
        "oauth_client_secret": _fixed(None, "; use a password or a certificate", is_secret=True),
        "oauth_scope": _fixed(None, "; use a password or a certificate"),
    }
)
"""All parameters of libpq 18. Names that are not here are settings of PostgreSQL."""

SYNONYMS: Mapping[str, str] = MappingProxyType({"database": "dbname", "username": "user"})
"""Other names of parameters: of asyncpg and SQLAlchemy."""

OWN_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "statement_timeout": "use the setting postgres_statement_timeout",
        "idle_in_transaction_session_timeout": "use the setting postgres_statement_timeout",
        "transaction_timeout": "use the setting postgres_statement_timeout",
        "idle_session_timeout": "remove it",
        "lock_timeout": "use the setting postgres_statement_timeout",
        "default_transaction_isolation": "remove it",
        "default_transaction_read_only": "remove it",
        "default_transaction_deferrable": "remove it",
        "transaction_isolation": "remove it",
        "transaction_read_only": "remove it",
        "transaction_deferrable": "remove it",
        "standard_conforming_strings": "remove it",
        "gin_fuzzy_search_limit": "remove it",
        "plan_cache_mode": "remove it",
        "row_security": "remove it",
        "jit": "remove it",
        "session_replication_role": "remove it",
    }
)
"""Settings of PostgreSQL on which the server relies and which it therefore sets, and the advice."""

USUAL_SETTINGS = frozenset(
    {
        "search_path",
        "synchronous_commit",
        "role",
        "timezone",
        "datestyle",
        "intervalstyle",
        "default_tablespace",
        "temp_tablespaces",
        "work_mem",
        "maintenance_work_mem",
        "tcp_keepalives_idle",
        "tcp_keepalives_interval",
        "tcp_keepalives_count",
        *OWN_SETTINGS,
    }
)
"""Settings of PostgreSQL that are expected in a connection string: no misspelled parameters, and no
parts of a password. Other settings are accepted as well, where they cannot be either."""

PASSWORD_VARIABLES = ("PGPASSWORD", "PGSSLPASSWORD")
"""Variables that contain a password. No program reads the second, but people set it."""
