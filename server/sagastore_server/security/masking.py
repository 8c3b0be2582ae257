"""Addresses without their secrets, to be shown to people."""

from __future__ import annotations

from urllib.parse import unquote

MASK = "********"


def has_password(dsn: str) -> bool:
    """Whether a connection string holds a password."""
    return mask_password(dsn) != dsn


def mask_password(dsn: str) -> str:
    """Return a connection string with its passwords masked, and all the rest.

    Rather masks too much than too little: where a password should have been
    percent-encoded, and was not, nobody can tell how far it goes.
    """
    scheme, separator, rest = dsn.partition("://")
    if not separator:
        return MASK
    user_part, at, rest = rest.rpartition("@")
    if "?" in user_part:
        return f"{scheme}://{MASK}"
    user, colon, _ = user_part.partition(":")
    user_part = f"{user}:{MASK}" if colon else user_part
    return f"{scheme}://{user_part}{at}{_mask_query(rest)}"


def mask_credentials(url: str) -> str:
    """Return a web address without user, password, and what the query says."""
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
