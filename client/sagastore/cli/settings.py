"""What all commands share: where the server is, how to reach it, and what to print."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sagastore.cli.failures import CommandError

if TYPE_CHECKING:
    from sagastore import TLS, AsyncClient
    from sagastore._target import Token

__all__ = ["DEFAULT_TARGET", "Settings"]

DEFAULT_TARGET = "127.0.0.1:50051"
_CALL_SECONDS = 10.0
_STREAM_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The options before the command."""

    target: str = DEFAULT_TARGET
    as_json: bool = False
    quiet: bool = False
    timeout: float | None = None
    token_file: Path | None = None
    allow_insecure_token: bool = False
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_server_name: str | None = None

    @property
    def stream_timeout(self) -> float:
        """Seconds without progress after which a transfer gives up."""
        return _STREAM_SECONDS if self.timeout is None else self.timeout

    def client(self) -> AsyncClient:
        """Return a client for these settings.

        Raises:
            CommandError: The settings contradict each other, or a file cannot be read.
        """
        from sagastore import AsyncClient

        try:
            return AsyncClient(
                self.target,
                tls=self._tls(),
                token=self._token(),
                timeout=_CALL_SECONDS if self.timeout is None else self.timeout,
                allow_insecure_token=self.allow_insecure_token,
            )
        except ValueError as exc:
            raise CommandError(_in_our_words(str(exc))) from None

    def _tls(self) -> TLS | bool:
        """Return how to secure the connection; one of the files given implies that it is."""
        from sagastore import TLS

        files = (self.tls_ca, self.tls_cert, self.tls_key)
        if self.tls_server_name is None and all(path is None for path in files):
            return self.tls
        # Read now: a file that is missing is better reported by its own name than
        # by whatever the first call would fail with.
        ca, cert, key = (None if path is None else _read(path) for path in files)
        return TLS(ca, cert, key, self.tls_server_name)

    def _token(self) -> Token | None:
        """Return the token: never an argument, which every user of the machine could see."""
        if self.token_file is None:
            return os.environ.get("SAGASTORE_TOKEN") or None
        from sagastore import TokenFile

        try:
            return TokenFile(self.token_file)
        except OSError as exc:
            raise CommandError(f"cannot read {self.token_file}: {exc.strerror}") from None
        except ValueError:
            raise CommandError(
                f"{self.token_file}: holds no token: one line of printable ASCII without spaces"
            ) from None


def _read(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as exc:
        raise CommandError(f"cannot read {path}: {exc.strerror}") from None


def _in_our_words(text: str) -> str:
    """Name options where the library names arguments."""
    for theirs, ours in (
        ("use tls=..., or allow_insecure_token=True", "use --tls, or --allow-insecure-token"),
        ("TLS: cert and key", "--tls-cert and --tls-key"),
        ("target: ", "--target: "),
    ):
        text = text.replace(theirs, ours)
    return text
