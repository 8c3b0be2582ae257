"""Explains errors of the connection: gRPC's texts as one line with the cause and what to do."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

import grpc

__all__ = ["Cause", "Security", "explain", "is_broken", "is_unsent"]

# Texts of INTERNAL and UNKNOWN errors that mean a broken connection.
_BROKEN: Final = re.compile(
    r"RST_STREAM|Stream removed|Connection reset|Socket closed|GOAWAY|Broken pipe"
    r"|Internal error from Core",
    re.IGNORECASE,
)
_UNSENT: Final = re.compile(
    r"failed to connect|connections to all backends failing|errors? resolving|resolution failed"
    r"|connect failed|handshake failed",
    re.IGNORECASE,
)


class Security(NamedTuple):
    """How a connection is secured; selects the hint for an unexplained disconnection."""

    tls: bool = False
    certificate: bool = False
    """The client has a certificate."""
    ends: datetime | None = None
    """When the client certificate expires, if this is known."""


class Cause(NamedTuple):
    """Why a call failed without a response of a SagaStore server."""

    line: str
    misconfigured: bool = False
    """The call fails until someone changes a setting."""


def is_unsent(text: str) -> bool:
    """Report whether a text of gRPC says that there was no connection."""
    return bool(_UNSENT.search(text))


def is_broken(code: grpc.StatusCode, text: str) -> bool:
    """Report whether an error that is not UNAVAILABLE means a broken connection."""
    if code is grpc.StatusCode.CANCELLED:
        # A cancellation by this client raises asyncio.CancelledError. The server
        # cancelled the call, for example because it shuts down.
        return True
    suspects = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    return code in suspects and bool(_BROKEN.search(text))


def explain(
    code: grpc.StatusCode,
    text: str,
    call: str,
    address: str,
    *,
    security: Security,
    timeout: float | None = None,
    connected: bool = True,
) -> Cause:
    """Return the cause of an error that does not come from a SagaStore server.

    Args:
        code: The status code.
        text: The text of gRPC, in one line.
        call: Name of the RPC.
        address: The server.
        security: How the connection is secured.
        timeout: Seconds that the call had, if it had a limit.
        connected: Whether there is a connection now.
    """
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return _unreachable(text, address, security)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            after = "" if timeout is None else f" after {timeout:.3g} s"
            if connected:
                return Cause(f"{call} timed out{after}: no response from {address}")
            return Cause(
                f"{call} timed out{after}: no connection to {address} yet; check the address and "
                "the port, and that the server is not hung"
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            line = f"{address} does not implement {call}; is it a SagaStore server of this version?"
            return Cause(line)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Cause(f"{address} rejected {call}: {text}")
        case _:
            line = f"{call} at {address} failed with {code.name}"
            return Cause(f"{line}: {text}" if text else line)


_RUNNING: Final = "is the server running?"
_PORT: Final = "check the port"

# The first match counts. Texts of gRPC 1.83 in lower case; what they stand for is
# tested against real sockets.
_CAUSES: Final = (
    ("connection refused", Cause(f"connection refused; {_RUNNING}")),
    ("no such file", Cause(f"no such socket; {_RUNNING}")),
    (
        "wrong_version_number",
        Cause(f"the server does not use TLS on this port; leave out tls, or {_PORT}", True),
    ),
    (
        "certificate has expired",
        Cause("the server's certificate has expired; renew it", True),
    ),
    (
        "certificate is not yet valid",
        Cause("the server's certificate is not valid yet; check the clocks", True),
    ),
    (
        "certificate_verify_failed",
        Cause("the server's certificate is not trusted; see TLS(ca=...)", True),
    ),
    (
        "hostname verification",
        Cause("the server's certificate is for another name; see TLS(server_name=...)", True),
    ),
    (
        "failed to create security handshaker",
        Cause(
            "the certificates or the key cannot be used; check TLS(ca=..., cert=..., key=...)", True
        ),
    ),
    (
        "missing selected alpn",
        Cause(
            f"the server on this port does not support HTTP/2, so it is not SagaStore; {_PORT}",
            True,
        ),
    ),
    (
        "http1.x server",
        Cause(f"an HTTP/1 server answers on this port, not SagaStore; {_PORT}", True),
    ),
    (
        "expected settings frame",
        Cause(f"the server on this port does not use gRPC, so it is not SagaStore; {_PORT}", True),
    ),
    (
        "before receiving settings",
        Cause(
            f"the port accepts connections but does not answer; {_PORT}, and that the server "
            "is not hung"
        ),
    ),
    (
        "handshake read failed (endpoint closing)",
        Cause(
            "the port accepts connections but does not answer the TLS handshake; "
            f"{_PORT}, and that the server is not hung"
        ),
    ),
    ("handshake failed", Cause("the TLS handshake failed; check the certificates")),
    ("tcp handshaker shutdown", Cause("the connection timed out; check the address and firewalls")),
    ("timed out", Cause("the connection timed out")),
    ("timeout", Cause("the connection timed out")),
    ("no route to host", Cause("no route to the host")),
    ("network is unreachable", Cause("the network is unreachable")),
    ("cancelling all calls", Cause("the server is shutting down")),
)

# A server that rejects a connection only closes it, so gRPC reports no cause.
_CLOSED_AT_ONCE: Final = re.compile(r"socket closed|connection reset|broken pipe")
_NAME: Final = re.compile(r"resolv|name not found|lookup")


def _unreachable(text: str, address: str, security: Security) -> Cause:
    low = text.lower()
    cause = next((cause for pattern, cause in _CAUSES if pattern in low), None)
    if cause is None and is_unsent(low):
        if _CLOSED_AT_ONCE.search(low):
            cause = Cause(_closed(low, security))
        elif _NAME.search(low):
            cause = Cause("the name cannot be resolved")
    if cause is not None:
        return cause._replace(line=f"cannot reach {address}: {cause.line}")
    if _BROKEN.search(text):
        return Cause(f"the connection to {address} was lost")
    return Cause(f"{address} is unavailable: {text}" if text else f"{address} is unavailable")


def _closed(low: str, security: Security) -> str:
    """Return the likely cause of a connection that the server closed at once."""
    if not security.tls:
        return "the server closed the connection; does the server require TLS (tls=True)?"
    if "handshake read failed" in low:
        return f"the server closed the connection during the TLS handshake; {_PORT}"
    after = "the server closed the connection after the TLS handshake"
    if not security.certificate:
        return f"{after}; does it require a client certificate (TLS(cert=..., key=...))?"
    if security.ends is not None and security.ends <= datetime.now(UTC):
        return f"{after}: the client certificate expired on {security.ends:%Y-%m-%d}; renew it"
    return f"{after}; does it trust the authority of the client certificate (tls_client_ca)?"
