"""Masking of credentials in connection strings and URLs."""

from __future__ import annotations

from urllib.parse import unquote

from sagastore_server.config.connection_string import SCHEMES, ConnectionStringError, parse
from sagastore_server.config.libpq import PARAMETERS

MASK = "********"


def has_password(dsn: str) -> bool:
    """Whether a connection string contains a password, or may contain one."""
    try:
        names = {one.name for one in parse(dsn)}
    except ConnectionStringError:
        return mask_password(dsn) != dsn
    return any(PARAMETERS[name].is_secret for name in names & PARAMETERS.keys())


def mask_password(dsn: str) -> str:
    """Return a connection string with its passwords masked.

    Masks too much rather than too little: a password that is not percent-encoded, as it must be,
    has no recognisable end, and a keyword string is masked as a whole.
    """
    scheme, separator, rest = dsn.partition("://")
    if not separator or scheme not in SCHEMES:
        return MASK
    user_part, at, rest = rest.rpartition("@")
    if "?" in user_part:
        return f"{scheme}://{MASK}"
    user, colon, _ = user_part.partition(":")
    user_part = f"{user}:{MASK}" if colon else user_part
    return f"{scheme}://{user_part}{at}{_mask_query(rest)}"


def mask_credentials(url: str) -> str:
    """Return a URL with user, password and query masked."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return MASK
    _, at, rest = rest.rpartition("@")
    address, question, _ = rest.partition("?")
    return f"{scheme}://{MASK if at else ''}{at}{address}{question}{MASK if question else ''}"


def _mask_query(text: str) -> str:
    address, question, query = text.partition("?")
    return address + question + "&".join(map(_mask_parameter, query.split("&")))


def _mask_parameter(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    return f"{name}{equals}{MASK}" if "password" in unquote(name).lower() else parameter
