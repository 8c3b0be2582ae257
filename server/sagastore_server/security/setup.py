"""Security setup: TLS and the access file, built from the settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from sagastore_server.config.settings import Settings
from sagastore_server.interfaces.tls import ClientTlsMaterial
from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.security.access_file import AccessFile
from sagastore_server.security.watched_files import FileError, Watched, watching

if TYPE_CHECKING:
    from sagastore_server.security.tls import TlsFiles


class SecuritySetupError(Exception):
    """The security settings cannot be used. One line: what is missing, and how to provide it."""


class SecuritySetup:
    """TLS and the access file, as far as the settings name them."""

    def __init__(self, settings: Settings) -> None:
        """Read and check the files.

        Raises:
            SecuritySetupError: A file cannot be used, or the server would be reachable from
                other machines without encryption or authentication.

        """
        _check_exposure(settings)
        self._requests_certificates = settings.tls_client_ca is not None
        try:
            self.tls = _tls(settings)
            self.forward_tls = _forward_tls(settings)
            self.access = None if settings.access is None else AccessFile(settings.access)
        except FileError as exc:
            raise SecuritySetupError(str(exc)) from exc
        if self.access and self.access.rules.certificates and settings.tls_client_ca is None:
            raise SecuritySetupError(
                f"{settings.access} has [[certificate]] entries, but the server requests no client "
                "certificates; set tls_client_ca, or remove these entries"
            )

        if self.access and self.access.rules.certificates and settings.forward:
            raise SecuritySetupError(
                f"{settings.access} has [[certificate]] entries, but a certificate cannot be "
                "passed on by a server with forward; give these callers tokens"
            )

    @property
    def certificate_end(self) -> Callable[[bytes], float] | None:
        """Returns the end of validity of a client certificate; None if clients need none."""
        if not self._requests_certificates:
            return None
        from sagastore_server.security.tls import end_of  # noqa: PLC0415 - as in _tls

        return end_of

    def watched(self, supervisor: Supervisor | None = None) -> AbstractAsyncContextManager[None]:
        """Reload changed files while the context lasts, by tasks of ``supervisor``."""
        found: dict[str, Watched | None] = {"tls": self.tls, "access": self.access}
        return watching({name: one for name, one in found.items() if one is not None}, supervisor)


def _tls(settings: Settings) -> TlsFiles | None:
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None or key is None:
        return None
    # The import takes 0.1 s, which a server without TLS saves.
    from sagastore_server.security.tls import TlsFiles  # noqa: PLC0415

    return TlsFiles(cert, key, settings.tls_client_ca)


def _forward_tls(settings: Settings) -> ClientTlsMaterial | None:
    """Read what connections to the holder of a migration need; None: they are in plain text."""
    if settings.forward_ca is None or not settings.forward:
        return None
    from sagastore_server.security.tls import client_material  # noqa: PLC0415 - as above

    return client_material(settings.forward_ca, settings.forward_cert, settings.forward_key)


def _check_exposure(settings: Settings) -> None:
    """Require encryption and authentication on addresses that other machines can reach."""
    if settings.address.is_loopback or settings.allow_insecure:
        return
    missing = []
    if settings.tls_cert is None:
        missing.append("TLS (tls_cert and tls_key)")
    if settings.access is None and settings.tls_client_ca is None:
        missing.append("authentication (access, or tls_client_ca)")
    if missing:
        raise SecuritySetupError(
            f"{settings.listen} can be reached from other machines, which requires "
            f"{' and '.join(missing)}; set that, listen on 127.0.0.1, or accept it with "
            "--allow-insecure"
        )
