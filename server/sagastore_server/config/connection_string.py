"""Parser of connection strings of PostgreSQL: URIs and keyword strings, as libpq reads them.

The syntax is libpq's ("Connection Strings" in the PostgreSQL documentation), with one exception: a
URI contains at most one ``@``, and no ``#``. libpq takes more of them as a part of the password,
the host or a value. They are nearly always a password that is not percent-encoded, so they are
refused, with a hint.

No error quotes any part of the string, apart from the names of known parameters: whatever is
malformed may be a part of a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from sagastore_server.config.libpq import PARAMETERS, SYNONYMS, USUAL_SETTINGS, similar

SCHEMES = ("postgresql", "postgres")

HINT = (
    "percent-encode special characters in user, password and values: @ as %40, / as %2F, ? as %3F, "
    "# as %23, : as %3A, % as %25, a space as %20"
)
_QUOTE_HINT = "enclose values with spaces in single quotes, and write \\' and \\\\ for ' and \\"

_WHAT = "the connection string"
_KEYWORDS = re.compile(r"\s*[A-Za-z_][A-Za-z0-9_.]*\s*=")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,62}")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_PAIR = re.compile(
    # Possessive: a shorter match would be another reading.
    r"\s*+(?P<name>[^=\s]++)\s*+=\s*+"
    r"(?:'(?P<quoted>(?:[^'\\]|\\.)*+)'|(?P<bare>(?:[^'\s\\]|\\.)*+))(?=\s|\Z)",
    re.DOTALL,
)


class ConnectionStringError(ValueError):
    """A connection string is malformed or unsupported. One line, without any part of it."""


class Written(NamedTuple):
    """A parameter as it is written, decoded."""

    name: str
    """In lower case, and without synonyms."""
    value: str
    is_delimited: bool = False
    """Whether the value ends where it must: in the first part of a URI."""


def parse(text: str) -> list[Written]:
    """Return the parameters of a connection string, in order.

    Raises:
        ConnectionStringError: The string is malformed.

    """
    scheme, separator, rest = text.partition("://")
    if separator and scheme in SCHEMES:
        found, hint = list(_of_uri(rest)), HINT
    elif _KEYWORDS.match(text):
        found, hint = list(_of_keywords(text)), _QUOTE_HINT
    else:
        raise ConnectionStringError(
            "must be like postgresql://USER@HOST:PORT/DATABASE, or host=HOST user=USER ..."
        )
    for one in _marked(found):
        _check(one, hint)
    # An empty value means the default.
    return [one for one in found if one.value]


def _marked(found: Iterable[Written]) -> Iterator[tuple[Written, bool]]:
    """Yield each parameter, and whether its name may be a part of a password that is not quoted.

    It may after a password, unless it is a usual name.
    """
    after_secret = False
    for one in found:
        known = PARAMETERS.get(one.name)
        yield one, after_secret and known is None and one.name not in USUAL_SETTINGS
        # A password in the authority of a URI ends at its only @.
        after_secret |= known is not None and known.is_secret and not one.is_delimited


def _check(marked: tuple[Written, bool], hint: str) -> None:
    one, is_doubtful = marked
    if one.name not in PARAMETERS and one.name not in USUAL_SETTINGS:
        meant = similar(one.name, PARAMETERS)
        is_name = _NAME.fullmatch(one.name) is not None
        if meant is not None or not is_name or is_doubtful:
            shown = f" {one.name}" if is_name and not is_doubtful else ""
            advice = f"; did you mean {meant}?" if meant else ""
            advice += "" if shown else f"; {hint}"
            raise ConnectionStringError(f"{_WHAT} has an unknown parameter{shown}{advice}")
    if _CONTROL.search(one.value):
        raise ConnectionStringError(
            f"{_WHAT} has a control character, such as a line break, in a value; remove it"
        )


# -------------------------------------------------------------------- URIs


def _of_uri(rest: str) -> Iterator[Written]:
    """Yield the parameters of what follows ``postgresql://``."""
    if rest.count("@") > 1 or "#" in rest:
        raise ConnectionStringError(
            f"{_WHAT} has a second @, or a #, that is not percent-encoded; {HINT}"
        )
    place, _, query = rest.partition("?")
    authority, _, database = place.partition("/")
    if "@" in query or "@" in database:
        raise ConnectionStringError(f"{_WHAT} has a /, ? or @ that is not percent-encoded; {HINT}")
    user_part, at, addresses = authority.rpartition("@")
    if at:
        user, colon, password = user_part.partition(":")
        yield Written("user", _decode(user))
        if colon:
            yield Written("password", _decode(password), is_delimited=True)
    yield from _addresses(addresses)
    yield Written("dbname", _decode(database))
    if query:
        yield from _of_query(query)


def _addresses(text: str) -> Iterator[Written]:
    """Yield host and port of ``host:port,host:port``; an IPv6 address is in brackets."""
    if not text:
        return
    hosts, ports = [], []
    for address in text.split(","):
        if address.startswith("["):
            host, bracket, after = address[1:].partition("]")
            if not bracket or not host or (after and not after.startswith(":")):
                raise ConnectionStringError(f"{_WHAT} has a malformed IPv6 address; {HINT}")
            port = after[1:]
        else:
            host, _, port = address.partition(":")
        hosts.append(_decode(host))
        ports.append(_decode(port))
        if port and not ports[-1].isdigit():
            # Here, because what follows may be the rest of a password.
            raise ConnectionStringError(
                f"port in {_WHAT} is not a number from 1 to 65535; correct it, or {HINT}"
            )
    if any("," in host for host in hosts):
        raise ConnectionStringError(f"{_WHAT} has a comma in a host; remove it")
    if any(hosts):
        yield Written("host", ",".join(hosts))
    if any(ports):
        yield Written("port", ",".join(ports))


def _of_query(query: str) -> Iterator[Written]:
    for parameter in query.split("&"):
        name, equals, value = parameter.partition("=")
        if not equals or not name:
            raise ConnectionStringError(
                f"{_WHAT} has something after the ? that is not NAME=VALUE; {HINT}, & as %26"
            )
        name = _known_name(_decode(name))
        if name == "ssl" and value == "true":  # As in JDBC; libpq accepts it, too.
            name, value = "sslmode", "require"
        yield Written(name, _decode(value))


def _decode(text: str) -> str:
    if _PERCENT.search(text):
        raise ConnectionStringError(f"{_WHAT} has a % without two hexadecimal digits; {HINT}")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError:
        raise ConnectionStringError(
            f"{_WHAT} has percent-encoded bytes that are not UTF-8; encode the text in UTF-8"
        ) from None


# -------------------------------------------------------------------- keyword strings


def _of_keywords(text: str) -> Iterator[Written]:
    """Yield the parameters of ``name = value name = 'a value'``."""
    place = 0
    while text[place:].strip():
        pair = _PAIR.match(text, place)
        if pair is None:
            raise ConnectionStringError(
                f"{_WHAT} has something that is not NAME=VALUE; {_QUOTE_HINT}"
            )
        place = pair.end()
        value = pair["bare"] if pair["quoted"] is None else pair["quoted"]
        if pair["quoted"] is None and _begins_with_parameter(value):
            # libpq reads "user= password=x" as a user; it would be shown.
            raise ConnectionStringError(f"{_WHAT} has an empty value; write '' for it")
        value = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
        yield Written(_known_name(pair["name"]), value)


def _begins_with_parameter(value: str) -> bool:
    name, equals, _ = value.partition("=")
    return bool(equals) and _known_name(name) in PARAMETERS


def _known_name(name: str) -> str:
    folded = name.lower()
    return SYNONYMS.get(folded, folded)
