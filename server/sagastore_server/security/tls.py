"""The certificate, its key and the clients' authorities: checked, watched, taken over as one.

``cryptography`` looks into them. The standard library could tell whether a key belongs
to a certificate, but not when that ends, and it wants files where we have what we read:
the data that was checked has to be the data that is used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sagastore_server.interfaces.tls import TlsMaterial
from sagastore_server.security.watched_files import Content, FileError, WatchedFiles

WARN_BEFORE = 30 * 86_400.0
"""Seconds before the end of a certificate from which on the log warns of it."""
_WARN_EVERY = 86_400.0
"""Seconds between two such warnings."""

_CURVES = ("secp256r1", "secp384r1")
"""gRPC starts with others too, and then every handshake fails."""
_MIN_RSA_BITS = 2048

_log = structlog.get_logger(__name__)


class TlsError(FileError):
    """TLS cannot be spoken with these files; the line says why, and what to do."""


class _Checked(NamedTuple):
    material: TlsMaterial
    ends: float
    """When the first of the certificates ends, in seconds since 1970."""


class TlsFiles:
    """What TLS is spoken with, read again when it changes."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read and check the files.

        Raises:
            TlsError: They cannot be used.

        """
        self._paths = [path for path in (cert, key, client_ca) if path is not None]
        self._files = WatchedFiles(self._paths)
        self._found: _Checked | TlsError | None = None
        self._in_force = _check(self._paths, self._files.read())
        self._warn_next = 0.0
        self._warn()

    @property
    def ends(self) -> float:
        """When the first of the certificates in use ends, in seconds since 1970."""
        return self._in_force.ends

    def material(self) -> TlsMaterial:
        """Return what is in force; from any thread."""
        return self._in_force.material

    def look(self) -> bool:
        """Look at the files, in any thread; tell whether to look again soon."""
        found = self._files.look()
        if found is not None:
            try:
                self._found = _check(self._paths, found)
            except TlsError as exc:
                self._found = exc
        return self._files.is_changing

    def tell(self) -> None:
        """Take over what the look found if it can be used, and say so in the log."""
        found, self._found = self._found, None
        if isinstance(found, TlsError):
            _log.error("certificate not taken over", reason=str(found), kept_until=_date(self.ends))
        elif found is not None and found.material != self._in_force.material:
            self._in_force, self._warn_next = found, 0.0
            _log.info("certificate taken over", file=str(self._paths[0]), ends=_date(found.ends))
        self._warn()

    def _warn(self) -> None:
        now = time.time()
        if now < self._warn_next or self.ends - now > WARN_BEFORE:
            return
        self._warn_next = now + _WARN_EVERY
        _log.warning(
            "certificate has ended" if self.ends <= now else "certificate ends soon",
            file=str(self._paths[0]),
            ends=_date(self.ends),
            days=round((self.ends - now) / 86_400, 1),
        )


def _check(paths: Sequence[Path], files: Sequence[Content]) -> _Checked:
    for path, file in zip(paths, files, strict=True):
        if file.problem:
            raise TlsError(f"{path} {file.problem}")
    chain = _certificates(paths[0], files[0].data)
    _check_key(paths, chain[0], files[1].data)
    _check_times(paths[0], chain[0])
    client_ca = None
    if len(files) > 2:
        _check_authorities(paths[2], files[2].data)
        client_ca = files[2].data
    if files[1].mode & 0o007:
        _log.warning("private key is open to everybody", file=str(paths[1]), do="chmod 600")
    material = TlsMaterial(files[0].data, files[1].data, client_ca)
    return _Checked(material, min(map(_ends, chain)))


def _certificates(path: Path, data: bytes) -> list[x509.Certificate]:
    if b"-----BEGIN" not in data:
        raise TlsError(f"{path} is not PEM: it must hold certificates as text (BEGIN CERTIFICATE)")
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise TlsError(f"{path} holds no certificate (BEGIN CERTIFICATE)")
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise TlsError(f"{path} holds a certificate that cannot be read; is it whole?") from None


def _check_key(paths: Sequence[Path], certificate: x509.Certificate, data: bytes) -> None:
    path = paths[1]
    if b"PRIVATE KEY-----" not in data:
        raise TlsError(f"{path} holds no private key as PEM (BEGIN PRIVATE KEY)")
    try:
        key = load_pem_private_key(data, None)
        public = certificate.public_key()
    except TypeError:
        raise TlsError(
            f"{path} has a passphrase, which nobody could type; "
            f"write one without: openssl pkey -in {path.name} -out NEW"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise TlsError(f"{path} holds a private key that cannot be read; is it whole?") from None
    if not _is_usable(public):
        raise TlsError(
            f"{paths[0]} is for a kind of key that cannot be served with; "
            f"use RSA from {_MIN_RSA_BITS} bits, P-256 or P-384"
        )
    if key.public_key() != public:
        raise TlsError(
            f"{path} is not the key of the first certificate in {paths[0]}; "
            "the server's own certificate comes first there, and the two belong together"
        )


def _is_usable(key: object) -> bool:
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size >= _MIN_RSA_BITS
    return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES


def _check_times(path: Path, certificate: x509.Certificate) -> None:
    now = time.time()
    begins, ends = _begins(certificate), _ends(certificate)
    if ends <= now:
        raise TlsError(f"the certificate in {path} has ended on {_date(ends)}; renew it")
    if begins > now:
        raise TlsError(
            f"the certificate in {path} is not valid before {_date(begins)}; "
            "is the clock of this machine right?"
        )


def _check_authorities(path: Path, data: bytes) -> None:
    # One that has ended may lie beside its successor for as long as anybody likes.
    found = _certificates(path, data)
    if all(_ends(certificate) <= time.time() for certificate in found):
        raise TlsError(f"every certificate in {path} has ended; no client could be let in")


def _begins(certificate: x509.Certificate) -> float:
    return certificate.not_valid_before_utc.timestamp()


def _ends(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
