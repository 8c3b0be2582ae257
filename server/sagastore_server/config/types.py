"""Types of the settings: notation, validation and description."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from sagastore_server.config.address import Address
from sagastore_server.config.connection import resolve, resolve_replica
from sagastore_server.config.connection_string import HINT, SCHEMES, ConnectionStringError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

OFF = "off"
"""Value of an address that disables the listener."""
LOG = "log"
"""Value of an output that goes to the log."""
AUTO = "auto"
"""Value of an output that depends on other settings."""


class Kind(NamedTuple):
    """Description of the values of a setting, beyond their type."""

    metavar: str
    """Placeholder of the value in the help."""
    what: str
    """Description of a value, as it can follow "must be"."""
    is_input: bool = False
    """Whether it names a file that must exist."""
    is_secret: bool = False
    """Whether it names a file that other users must not read."""


def _address(text: str) -> str:
    return str(Address.parse(text))


def _address_or_off(text: str) -> str:
    return OFF if text.strip().lower() == OFF else _address(text)


def _output(text: str) -> str:
    word = text.strip().lower()
    return word if word in {AUTO, LOG, OFF} else str(_at_home(Path(text)))


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as exc:
        raise ValueError(f"{path} begins with ~, but that user has no home directory") from exc


def _connection_string(dsn: SecretStr) -> SecretStr:
    resolve(dsn.get_secret_value(), os.environ)
    return dsn


_BETWEEN = re.compile(rf"[\s,;]+(?=(?:{'|'.join(SCHEMES)})://)")
"""What separates URIs: neither a space nor ``://`` can be in one that is valid."""


def connection_strings(written: object) -> object:
    """Split a text into connection strings; a list is returned as it is."""
    return _BETWEEN.split(written.strip()) if isinstance(written, str) else written


def _replicas(dsns: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    numbers: dict[object, int] = {}
    for number, dsn in enumerate(dsns, start=1):
        try:
            (address,) = resolve_replica(dsn.get_secret_value(), os.environ).addresses
        except ConnectionStringError as exc:
            raise ValueError(f"replica {number}: {exc}") from None
        if address in numbers:
            raise ValueError(
                f"replica {number} is {address}, as replica {numbers[address]} is; remove one"
            )
        numbers[address] = number
    return dsns


def _web_address(text: str) -> str:
    authority = text.partition("://")[2].partition("/")[0]
    if text.count("@") > ("@" in authority) or "#" in text:
        raise ValueError(f"has a second @, or a #, that is not percent-encoded; {HINT}")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable:
        # Without the value, which may contain credentials.
        raise ValueError("must be a URL that begins with http:// or https://")
    return text


HostPort = Annotated[str, AfterValidator(_address), Kind("HOST:PORT", "an address HOST:PORT")]
HostPortOrOff = Annotated[
    str, AfterValidator(_address_or_off), Kind("HOST:PORT", "an address HOST:PORT, or off")
]
File = Annotated[Path, AfterValidator(_at_home), Kind("FILE", "a file")]
Output = Annotated[str, AfterValidator(_output), Kind("FILE", "auto, log, off or a file")]
InputFile = Annotated[Path, AfterValidator(_at_home), Kind("FILE", "a file", is_input=True)]
SecretFile = Annotated[
    Path, AfterValidator(_at_home), Kind("FILE", "a file", is_input=True, is_secret=True)
]
Dsn = Annotated[SecretStr, AfterValidator(_connection_string), Kind("DSN", "a connection string")]
Replicas = Annotated[
    tuple[SecretStr, ...],
    NoDecode,
    BeforeValidator(connection_strings),
    AfterValidator(_replicas),
    Kind("DSN,...", "connection strings"),
]
Url = Annotated[str, AfterValidator(_web_address), Kind("URL", "an http or https URL")]
Count = Annotated[int, Kind("N", "a whole number")]
Bytes = Annotated[int, Kind("BYTES", "a number of bytes")]
Rate = Annotated[float, Kind("N", "a number")]
Seconds = Annotated[float, Kind("SECONDS", "a number of seconds")]
Share = Annotated[float, Field(ge=0, le=1), Kind("SHARE", "a number")]

_SWITCH = Kind("", "true or false")
_ANY = Kind("VALUE", "a text")


def kind(field: FieldInfo) -> Kind:
    """Return the kind of a setting; of an optional one, the kind of its value."""
    if field.annotation is bool:
        return _SWITCH
    inner = [
        part
        for choice in get_args(field.annotation)
        for part in getattr(choice, "__metadata__", ())
    ]
    found = (part for part in [*field.metadata, *inner] if isinstance(part, Kind))
    return next(found, _ANY)


def is_switch(field: FieldInfo) -> bool:
    """Whether a setting is a boolean."""
    return kind(field) is _SWITCH


def bounds(field: FieldInfo) -> str:
    """Return the accepted range, for example ``from 0 to 3600``; empty if there is none."""
    limits = {
        name: plain_number(getattr(part, name))
        for part in field.metadata
        for name in ("ge", "gt", "le")
        if hasattr(part, name)
    }
    if "gt" in limits:
        return f"above {limits['gt']}" + (f", up to {limits['le']}" if "le" in limits else "")
    low = f"from {limits['ge']}" if "ge" in limits else ""
    return f"{low} to {limits['le']}".strip() if "le" in limits else low


def expectation(field: FieldInfo) -> str:
    """Return the description of a valid value, as it follows "must be"."""
    return f"{kind(field).what} {bounds(field)}".rstrip()


def plain_number(number: object) -> str:
    """Return a number without unnecessary digits."""
    return f"{number:g}" if isinstance(number, float) else str(number)
