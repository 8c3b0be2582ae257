"""Who can reach the server and how: TLS and the access file, put together from the settings."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from sagastore_server.config.settings import Settings
from sagastore_server.security.access_file import AccessFile
from sagastore_server.security.watched_files import FileError, Watched, watching

if TYPE_CHECKING:
    from sagastore_server.security.tls import TlsFiles


class SecuritySetupError(Exception):
    """The server must not listen so; the line says what is missing and how to give it."""


class SecuritySetup:
    """TLS and the access file, where the settings name them."""

    def __init__(self, settings: Settings) -> None:
        """Read and check the files.

        Raises:
            SecuritySetupError: One cannot be used, or strangers could come in, or be read.

        """
        _check_exposure(settings)
        try:
            self.tls = _tls(settings)
            self.access = None if settings.access is None else AccessFile(settings.access)
        except FileError as exc:
            raise SecuritySetupError(str(exc)) from exc
        if self.access and self.access.rules.certificates and settings.tls_client_ca is None:
            raise SecuritySetupError(
                f"{settings.access} names certificates, but nobody is asked for one; "
                "give their authority with tls_client_ca, or remove these entries"
            )

    def watched(self) -> AbstractAsyncContextManager[None]:
        """Take over changes of the files for as long as the context lasts."""
        things: list[Watched] = [thing for thing in (self.tls, self.access) if thing is not None]
        return watching(things)


def _tls(settings: Settings) -> TlsFiles | None:
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None or key is None:
        return None
    # Loading it takes a tenth of a second, which those without TLS need not wait.
    from sagastore_server.security.tls import TlsFiles  # noqa: PLC0415

    return TlsFiles(cert, key, settings.tls_client_ca)


def _check_exposure(settings: Settings) -> None:
    """Refuse to be reached from other machines in plain text, or by anybody."""
    if settings.address.is_loopback or settings.allow_insecure:
        return
    missing = []
    if settings.tls_cert is None:
        missing.append("TLS (tls_cert and tls_key)")
    if settings.access is None and settings.tls_client_ca is None:
        missing.append("a way to know callers (access, or tls_client_ca)")
    if missing:
        raise SecuritySetupError(
            f"{settings.listen} can be reached from other machines, which needs "
            f"{' and '.join(missing)}; set that, listen on 127.0.0.1, or accept it with "
            "--allow-insecure"
        )
