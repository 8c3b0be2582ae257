"""TLS material of the server: certificate chain, private key and client authorities.

The files are checked and replaced as one: a certificate and a key that do not match are never
used together. ``cryptography`` parses them. The standard library could check that key and
certificate match, but not when the certificate expires, and it reads files only, whereas the
data that was checked has to be the data that is used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sagastore_server.interfaces.tls import ClientTlsMaterial, TlsMaterial
from sagastore_server.security.watched_files import Content, FileError, WatchedFiles

WARN_BEFORE = 30 * 86_400.0
"""Seconds before the expiry of a certificate from which on the log warns of it."""
_WARN_EVERY = 86_400.0
"""Seconds between two such warnings."""

_CURVES = ("secp256r1", "secp384r1")
"""With other curves gRPC starts, but every handshake fails."""
_MIN_RSA_BITS = 2048

_log = structlog.get_logger(__name__)


class TlsError(FileError):
    """The files cannot be used for TLS."""


class _Checked(NamedTuple):
    material: TlsMaterial
    ends: float
    """Earliest expiry in the chain, in seconds since 1970."""


class TlsFiles:
    """TLS material that is reloaded when its files change."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read and check the files.

        Raises:
            TlsError: They cannot be used.

        """
        self._paths = [path for path in (cert, key, client_ca) if path is not None]
        self._files = WatchedFiles(self._paths)
        self._found: _Checked | TlsError | None = None
        self._current = _check(self._paths, self._files.read())
        self._warn_next = 0.0
        self._warn()

    @property
    def ends(self) -> float:
        """Earliest expiry of the certificates in use, in seconds since 1970."""
        return self._current.ends

    def material(self) -> TlsMaterial:
        """Return the current material. Safe in any thread."""
        return self._current.material

    def poll(self) -> bool:
        """Check the files, in any thread. Return whether a change has to be confirmed soon."""
        found = self._files.poll()
        if found is not None:
            try:
                self._found = _check(self._paths, found)
            except TlsError as exc:
                self._found = exc
        return self._files.is_changing

    def apply(self) -> None:
        """Use what the last poll found, unless it is invalid, and log the result."""
        found, self._found = self._found, None
        if isinstance(found, TlsError):
            _log.error("certificate not reloaded", reason=str(found), kept_until=_date(self.ends))
        elif found is not None and found.material != self._current.material:
            self._current, self._warn_next = found, 0.0
            _log.info("certificate reloaded", file=str(self._paths[0]), ends=_date(found.ends))
        self._warn()

    def _warn(self) -> None:
        now = time.time()
        if now < self._warn_next or self.ends - now > WARN_BEFORE:
            return
        self._warn_next = now + _WARN_EVERY
        _log.warning(
            "certificate has expired" if self.ends <= now else "certificate expires soon",
            file=str(self._paths[0]),
            ends=_date(self.ends),
            days=round((self.ends - now) / 86_400, 1),
        )


def end_of(certificate: bytes) -> float:
    """Return the end of validity of a certificate in PEM, in seconds since 1970.

    Raises:
        ValueError: It is not a certificate.

    """
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()


def client_material(ca: Path, cert: Path | None, key: Path | None) -> ClientTlsMaterial:
    """Read and check the files for connections to another server.

    Raises:
        TlsError: They cannot be used.

    """
    if cert is None or key is None:
        file = WatchedFiles([ca]).read()[0]
        if file.problem:
            raise TlsError(f"{ca} {file.problem}")
        _check_authorities(ca, file.data)
        return ClientTlsMaterial(file.data)
    paths = [cert, key, ca]
    found = _check(paths, WatchedFiles(paths).read()).material
    assert found.client_ca is not None  # noqa: S101 - the third file
    return ClientTlsMaterial(found.client_ca, found.chain, found.key)


def _check(paths: Sequence[Path], files: Sequence[Content]) -> _Checked:
    for path, file in zip(paths, files, strict=True):
        if file.problem:
            raise TlsError(f"{path} {file.problem}")
    chain = _certificates(paths[0], files[0].data)
    _check_key(paths, chain[0], files[1].data)
    validity = [_validity(paths[0], certificate) for certificate in chain]
    _check_validity(paths[0], validity[0])
    client_ca = None
    if len(files) > 2:
        _check_authorities(paths[2], files[2].data)
        client_ca = files[2].data
    if files[1].mode & 0o007:
        _log.warning("other users can read the private key", file=str(paths[1]), do="chmod 600")
    material = TlsMaterial(files[0].data, files[1].data, client_ca)
    return _Checked(material, min(one.ends for one in validity))


def _certificates(path: Path, data: bytes) -> list[x509.Certificate]:
    if b"-----BEGIN" not in data:
        raise TlsError(
            f"{path} is not PEM: expected text with BEGIN CERTIFICATE; convert the file to PEM"
        )
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise TlsError(f"{path} contains no certificate (BEGIN CERTIFICATE)")
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise TlsError(
            f"{path} contains an invalid certificate; check that the file is complete"
        ) from None


def _check_key(paths: Sequence[Path], certificate: x509.Certificate, data: bytes) -> None:
    path = paths[1]
    if b"PRIVATE KEY-----" not in data:
        raise TlsError(f"{path} contains no private key in PEM (BEGIN PRIVATE KEY)")
    try:
        key = load_pem_private_key(data, None)
        public = certificate.public_key()
    except TypeError:
        raise TlsError(
            f"private key {path} is encrypted; use an unencrypted key, which "
            f"openssl pkey -in {path.name} -out NEW makes"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise TlsError(
            f"{path} contains an invalid private key; check that the file is complete"
        ) from None
    if not _is_usable(public):
        raise TlsError(
            f"{paths[0]} has an unsupported kind of key; "
            f"use RSA with at least {_MIN_RSA_BITS} bits, P-256 or P-384"
        )
    if key.public_key() != public:
        raise TlsError(
            f"{path} does not match the first certificate in {paths[0]}; "
            "put the certificate of this key first"
        )


def _is_usable(key: object) -> bool:
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size >= _MIN_RSA_BITS
    return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES


class _Validity(NamedTuple):
    """Validity period of a certificate, in seconds since 1970."""

    begins: float
    ends: float


def _validity(path: Path, certificate: x509.Certificate) -> _Validity:
    try:
        return _Validity(
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        )
    except (ValueError, OverflowError) as exc:
        raise TlsError(f"{path} contains a certificate with an invalid date: {exc}") from None


def _check_validity(path: Path, validity: _Validity) -> None:
    now = time.time()
    if validity.ends <= now:
        raise TlsError(f"the certificate in {path} expired on {_date(validity.ends)}; renew it")
    if validity.begins > now:
        raise TlsError(
            f"the certificate in {path} is not valid before {_date(validity.begins)}; "
            "check the clock of this machine"
        )


def _check_authorities(path: Path, data: bytes) -> None:
    # An expired authority may stay in the file beside its successor.
    found = _certificates(path, data)
    if all(_validity(path, certificate).ends <= time.time() for certificate in found):
        raise TlsError(f"every certificate in {path} has expired, so no connection could be made")


def _date(seconds: float) -> str:
    # In UTC: 9999-12-31T23:59:59Z, which means "no expiry", has no local time east of Greenwich.
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
