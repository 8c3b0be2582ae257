"""TLS settings of a client, and the check of its certificates and keys."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc

from sagastore import _checks as checks
from sagastore._checks import invalid, wrong_type
from sagastore._der import validity

if TYPE_CHECKING:
    import ssl
    from datetime import datetime

    from sagastore.errors import InvalidArgumentError

__all__ = ["TLS", "Credentials"]

Pem = bytes | str | os.PathLike[str]

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----\s.*?-----END CERTIFICATE-----", re.DOTALL)
_ENCRYPTED = (b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED")


@dataclass(frozen=True, slots=True)
class TLS:
    """TLS settings. Certificates and keys are PEM data (bytes or text) or paths of PEM files.

    A client reads and checks the files when it is created.

    Attributes:
        ca: Certificates of the trusted authorities; None for gRPC's default.
        cert: The client certificate (chain), if the server requires one.
        key: The private key of `cert`, unencrypted.
        server_name: The name in the server's certificate, if it differs from
            the name in the address.
    """

    ca: Pem | None = None
    cert: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        """Check the types, and require both of `cert` and `key`, or neither."""
        for name in ("ca", "cert", "key"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bytes | str | os.PathLike):
                raise wrong_type(name, "PEM data (bytes or str) or a path", value)
        if self.server_name is not None:
            checks.text(self.server_name, "server_name")
        if (self.cert is None) != (self.key is None):
            raise invalid("cert", "cert and key belong together; give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read and check the files and return gRPC credentials.

        Raises:
            InvalidArgumentError: A file cannot be read or used.
        """
        return Credentials.read(self).for_grpc()


class Credentials(NamedTuple):
    """The PEM data of TLS settings, checked."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None
    server_name: str | None
    ends: datetime | None
    """When the client certificate expires, if there is one and this is known."""

    @classmethod
    def read(cls, tls: TLS) -> Credentials:
        """Read the files and check what they contain.

        Raises:
            InvalidArgumentError: A file cannot be read or used; the error names the
                argument of `TLS` and the file.
        """
        ca = _Source.read("ca", tls.ca)
        cert = _Source.read("cert", tls.cert)
        key = _Source.read("key", tls.key)
        ends = None
        if ca is not None:
            _certificates(ca)
        if cert is not None and key is not None:
            ends = validity(_certificates(cert)[0])
            _check_key(cert, key)
        return cls(_data(ca), _data(cert), _data(key), tls.server_name, ends)

    def for_grpc(self) -> grpc.ChannelCredentials:
        """Return the credentials in the form that gRPC takes."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca, private_key=self.key, certificate_chain=self.cert
        )


class _Source(NamedTuple):
    """PEM data and where it comes from."""

    argument: str
    path: str
    data: bytes

    @classmethod
    def read(cls, argument: str, pem: Pem | None) -> _Source | None:
        if pem is None:
            return None
        if isinstance(pem, bytes):
            return cls(argument, "", pem)
        if isinstance(pem, str) and "-----BEGIN" in pem:
            return cls(argument, "", pem.encode())  # A path in an error would show the key.
        path = os.fspath(pem)
        try:
            return cls(argument, str(path), Path(path).expanduser().read_bytes())
        except (OSError, ValueError, RuntimeError) as exc:
            reason = getattr(exc, "strerror", None) or "not a path"
            raise invalid(argument, f"cannot read {str(path) or repr('')}: {reason}") from None

    def wrong(self, problem: str) -> InvalidArgumentError:
        """Return the error for this data."""
        return invalid(self.argument, f"{self.path} {problem}".strip())


def _data(source: _Source | None) -> bytes | None:
    return None if source is None else source.data


def _certificates(source: _Source) -> list[bytes]:
    """Return the certificates in PEM, at least one.

    Raises:
        InvalidArgumentError: There is none, or one is invalid.
    """
    import ssl  # noqa: PLC0415 - only clients that use TLS need it

    if b"-----BEGIN" not in source.data:
        raise source.wrong("is not PEM: expected text with BEGIN CERTIFICATE; convert it to PEM")
    if b"-----BEGIN CERTIFICATE-----" not in source.data:
        raise source.wrong("contains no certificate (BEGIN CERTIFICATE)")
    found = _CERTIFICATE.findall(source.data)
    complete = len(found) == source.data.count(b"-----BEGIN CERTIFICATE-----")
    try:
        ders = [ssl.PEM_cert_to_DER_cert(pem.decode("ascii").strip()) for pem in found]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for der in ders:
            context.load_verify_locations(cadata=der)
    except (ssl.SSLError, ValueError):
        complete = False
    if not complete:
        raise source.wrong("contains an invalid certificate; check that it is complete")
    return ders


def _check_key(cert: _Source, key: _Source) -> None:
    """Check that the key can be used and belongs to the first certificate.

    Raises:
        InvalidArgumentError: It does not.
    """
    if b"PRIVATE KEY-----" not in key.data:
        raise key.wrong("contains no private key in PEM (BEGIN PRIVATE KEY)")
    if any(mark in key.data for mark in _ENCRYPTED):
        raise key.wrong(
            "is encrypted; use an unencrypted key, which openssl pkey -in KEY -out NEW makes"
        )
    problem = _pair_problem(cert, key)
    if problem is None:
        return
    if "MISMATCH" in (problem.reason or ""):
        other = f"the first certificate in {cert.path}" if cert.path else "the certificate"
        raise key.wrong(f"does not match {other}; give the key of that certificate") from None
    raise key.wrong("contains an invalid private key; check that it is complete") from None


def _pair_problem(cert: _Source, key: _Source) -> ssl.SSLError | None:
    """Return why OpenSSL refuses a certificate with a key; None also if it cannot be asked."""
    import ssl  # noqa: PLC0415 - only clients that use TLS need it

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # gRPC has its own rules about the strength of keys.
    with suppress(ssl.SSLError):
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    try:
        with _as_file(cert) as first, _as_file(key) as second:
            # The function keeps OpenSSL from asking for a passphrase on the terminal.
            context.load_cert_chain(first, second, password=lambda: "")
    except ssl.SSLError as exc:
        return exc
    except OSError:
        return None
    return None


@contextmanager
def _as_file(source: _Source) -> Iterator[str]:
    """Yield the path of a file with the data, because the `ssl` module reads files only.

    On Linux, it is in memory. Elsewhere only data from a file has one: a key is not
    written to disk, and gRPC reports a wrong one without the reason.

    Raises:
        OSError: There is no such file.
    """
    if not hasattr(os, "memfd_create"):
        if not source.path:
            raise OSError("only files can be checked on this system")
        yield str(Path(source.path).expanduser())
        return
    descriptor = os.memfd_create("sagastore")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(source.data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
