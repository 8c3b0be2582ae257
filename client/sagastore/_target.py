"""Server addresses, TLS settings and tokens."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

__all__ = ["TLS", "Address", "Token", "TokenFile", "parse_targets", "token_source"]

DEFAULT_PORT = 50051

_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:", "xds:")

_NOT_IN_HOSTS = re.compile(r"[\s/?#@\[\]]")

_MAX_TOKEN_BYTES = 8192

Pem = bytes | str | os.PathLike[str]
Token = str | Callable[[], str]


@dataclass(frozen=True, slots=True)
class TLS:
    """TLS settings. Certificates and keys are PEM data (bytes or text) or paths of PEM files.

    Attributes:
        ca: Certificates of the trusted authorities; None for gRPC's default.
        cert: The client certificate (chain), if the server requires one.
        key: The private key of `cert`.
        server_name: The name in the server's certificate, if it differs from
            the name in the address.
    """

    ca: Pem | None = None
    cert: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        """Require both of `cert` and `key`, or neither."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("TLS: cert and key belong together; give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files and return gRPC credentials.

        Raises:
            OSError: A file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca),
            private_key=_read(self.key),
            certificate_chain=_read(self.cert),
        )


def _read(pem: Pem | None) -> bytes | None:
    if pem is None or isinstance(pem, bytes):
        return pem
    if isinstance(pem, str) and pem.lstrip().startswith("-----BEGIN"):
        return pem.encode()  # Path(pem) would put a private key into the error message.
    return Path(pem).read_bytes()


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a server, as text and as a gRPC target."""

    text: str
    target: str
    loopback: bool


def parse_targets(target: str | Sequence[str]) -> tuple[Address, ...]:
    """Parse one or several addresses.

    Raises:
        ValueError: An address is empty or not `HOST:PORT`, `HOST`, or a name
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
        raise ValueError("target: no address given")
    return addresses


def _parse(text: str) -> Address:
    if not text:
        raise ValueError("target: empty address")
    if text.startswith(_SCHEMES):
        return Address(text, text, _scheme_is_loopback(text))
    if "://" in text:
        raise ValueError(f"target: {text!r} is not an address; write HOST:PORT")
    host, port = _split(text)
    bracketed = f"[{host}]" if ":" in host else host
    return Address(f"{bracketed}:{port}", f"dns:///{bracketed}:{port}", _is_loopback(host))


def _split(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or ":" not in host or (rest and not rest.startswith(":")):
            raise ValueError(f"target: {text!r} is not an address; write [IPV6]:PORT")
        port = rest[1:]
    elif text.count(":") > 1:
        host, port = text, ""  # An IPv6 address without a port.
    else:
        host, _, port = text.partition(":")
    right_port = not port or (port.isascii() and port.isdigit() and 0 < int(port) < 65536)
    if not _is_host(host) or not right_port:
        raise ValueError(f"target: {text!r} is not an address; write HOST:PORT")
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
            ValueError: The file is not one line of printable ASCII without spaces.
        """
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
        ValueError: The token would cross a network in plain text.
    """
    if token is None:
        return None
    exposed = [a.text for a in addresses if not a.loopback]
    if exposed and not secure and not allow_insecure:
        raise ValueError(
            f"the token would be sent to {exposed[0]} in plain text; use tls=..., "
            "or allow_insecure_token=True if the network is secure"
        )
    if callable(token):
        source = token
        return lambda: _checked(source())
    fixed = _checked(token)
    return lambda: fixed


def _checked(token: str) -> str:
    # gRPC's error would contain the whole header.
    if not token or not all("!" <= c <= "~" for c in token):
        raise ValueError("token: must be printable ASCII without spaces, and not empty")
    return token
