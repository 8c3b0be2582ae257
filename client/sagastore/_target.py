"""Server addresses and tokens."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sagastore._checks import invalid, wrong_type
from sagastore._enums import shown

__all__ = ["Address", "Token", "TokenFile", "parse_targets", "token_source"]

DEFAULT_PORT = 50051

_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:", "xds:")

_NOT_IN_HOSTS = re.compile(r"[\s/?#@\[\]]")

_MAX_TOKEN_BYTES = 8192

Token = str | Callable[[], str]


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a server, as text and as a gRPC target."""

    text: str
    target: str
    loopback: bool


def parse_targets(target: str | Sequence[str]) -> tuple[Address, ...]:
    """Parse one or several addresses.

    Raises:
        InvalidArgumentError: An address is empty or not `HOST:PORT`, `HOST`, or a name
            that gRPC resolves (`dns:///…`, `unix:…`, `ipv4:…`, `ipv6:…`).
    """
    if isinstance(target, str):
        # "ipv4:" and "ipv6:" names may contain several addresses.
        whole = target.startswith(("ipv4:", "ipv6:"))
        parts: Sequence[str] = [target] if whole else target.split(",")
    else:
        parts = target
    addresses = tuple(_parse(part.strip()) for part in parts)
    if not addresses:
        raise invalid("target", "no address given")
    return addresses


def _parse(text: str) -> Address:
    if not text:
        raise invalid("target", "empty address")
    if text.startswith(_SCHEMES):
        return Address(text, text, _scheme_is_loopback(text))
    if "://" in text:
        raise invalid("target", f"{shown(text)} is not an address; write HOST:PORT")
    host, port = _split(text)
    bracketed = f"[{host}]" if ":" in host else host
    return Address(f"{bracketed}:{port}", f"dns:///{bracketed}:{port}", _is_loopback(host))


def _split(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or ":" not in host or (rest and not rest.startswith(":")):
            raise invalid("target", f"{shown(text)} is not an address; write [IPV6]:PORT")
        port = rest[1:]
    elif text.count(":") > 1:
        host, port = text, ""  # An IPv6 address without a port.
    else:
        host, _, port = text.partition(":")
    right_port = not port or (port.isascii() and port.isdigit() and 0 < int(port) < 65536)
    if not _is_host(host) or not right_port:
        raise invalid("target", f"{shown(text)} is not an address; write HOST:PORT")
    return host, int(port or DEFAULT_PORT)


def _is_host(host: str) -> bool:
    if ":" not in host:
        return bool(host) and not _NOT_IN_HOSTS.search(host)
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _scheme_is_loopback(text: str) -> bool:
    scheme, _, rest = text.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme in ("ipv4", "ipv6"):
        return all(_is_loopback(_split(part)[0]) for part in rest.lstrip("/").split(","))
    if scheme == "dns":
        return _is_loopback(_split(rest.rpartition("/")[2])[0])
    return False


def _is_loopback(host: str) -> bool:
    if host.lower().rstrip(".") in ("localhost", "ip6-localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


class TokenFile:
    """A bearer token in a file, read for each call: `Client(token=TokenFile(path))`.

    The file can be replaced while a client is in use. If the file is missing or invalid,
    for example during the replacement, the previous token is used.
    """

    __slots__ = ("_path", "_token")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the file.

        Raises:
            OSError: The file cannot be read.
            InvalidArgumentError: The file is not one line of printable ASCII without spaces.
        """
        if not isinstance(path, str | os.PathLike):
            raise wrong_type("path", "a path", path)
        self._path = Path(path).expanduser()
        self._token = self._read()

    def __call__(self) -> str:
        """Return the token."""
        # Reading takes about 15 µs; file times do not change with every write.
        with contextlib.suppress(OSError, ValueError):
            self._token = self._read()
        return self._token

    def __repr__(self) -> str:
        """Return a text with the path and without the token."""
        return f"TokenFile({str(self._path)!r})"

    def _read(self) -> str:
        with self._path.open("rb") as file:
            data = file.read(_MAX_TOKEN_BYTES)
        return _checked(data.decode("ascii", "replace").strip())


def token_source(
    token: Token | None,
    addresses: Sequence[Address],
    *,
    secure: bool,
    allow_insecure: bool,
) -> Callable[[], str] | None:
    """Return a function that returns the token for each call.

    Raises:
        InvalidArgumentError: The token would cross a network in plain text.
    """
    if token is None:
        return None
    exposed = [a.text for a in addresses if not a.loopback]
    if exposed and not secure and not allow_insecure:
        raise invalid(
            "token",
            f"token would be sent to {exposed[0]} in plain text; use tls=..., "
            "or allow_insecure_token=True if the network is secure",
        )
    if callable(token):
        source = token
        return lambda: _checked(source())
    fixed = _checked(token)
    return lambda: fixed


def _checked(token: str) -> str:
    # gRPC's error would contain the whole header.
    if not isinstance(token, str):
        raise wrong_type("token", "a str", token)
    if not token or not all("!" <= c <= "~" for c in token):
        raise invalid("token", "token: must be printable ASCII without spaces, and not empty")
    return token
