"""Settings of all commands: the server, the connection and the output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sagastore.cli.failures import CommandError

if TYPE_CHECKING:
    from sagastore import TLS, AsyncClient
    from sagastore._target import Token

__all__ = ["DEFAULT_TARGET", "Settings"]

DEFAULT_TARGET = "127.0.0.1:50051"
_TARGET = "--target: "
_PAIR = "--tls-cert and --tls-key belong together"
_CALL_SECONDS = 10.0
_STREAM_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The values of the common options."""

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
    given: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The words of the connection options that are on the command line, by field."""

    def command(self, *words: str) -> tuple[str, ...]:
        """Return a command that reaches the same server, for people to run.

        It repeats the connection options of the command line. Those of the environment apply to
        it anyway, and no token is ever an option. `--timeout` is not repeated: each command has
        its own default.
        """
        return ("sagastore", *(word for option in self.given.values() for word in option), *words)

    @property
    def stream_timeout(self) -> float:
        """Maximum seconds without progress of a transfer."""
        return _STREAM_SECONDS if self.timeout is None else self.timeout

    def client(self) -> AsyncClient:
        """Return a client for these settings.

        Raises:
            typer.BadParameter: The target is not an address, or an option lacks another one.
            CommandError: A file cannot be used, or the token would be sent in plain text.
        """
        from sagastore import AsyncClient
        from sagastore.cli.retry_notice import show_retries

        if not self.quiet:
            show_retries()
        try:
            return AsyncClient(
                self.target,
                tls=self._tls(),
                token=self._token(),
                timeout=_CALL_SECONDS if self.timeout is None else self.timeout,
                allow_insecure_token=self.allow_insecure_token,
            )
        except ValueError as exc:
            text = _with_option_names(str(exc))
            if text.startswith((_TARGET, _PAIR)):
                raise typer.BadParameter(text) from None
            raise CommandError(text) from None

    def _tls(self) -> TLS | bool:
        """Return the TLS settings; any --tls-... option enables TLS."""
        from sagastore import TLS

        files = (self.tls_ca, self.tls_cert, self.tls_key)
        if self.tls_server_name is None and all(path is None for path in files):
            return self.tls
        return TLS(*files, self.tls_server_name)

    def _token(self) -> Token | None:
        """Return the token; never from an argument, which all users of the machine can see."""
        if self.token_file is None:
            return os.environ.get("SAGASTORE_TOKEN") or None
        from sagastore import TokenFile

        try:
            return TokenFile(self.token_file)
        except OSError as exc:
            raise CommandError(f"cannot read {self.token_file}: {exc.strerror}") from None
        except ValueError:
            raise CommandError(
                f"{self.token_file} is not a token: one line of printable ASCII without spaces"
            ) from None


def _with_option_names(text: str) -> str:
    """Replace the argument names of the library with option names."""
    for argument, option in (
        ("use tls=..., or allow_insecure_token=True", "use --tls, or --allow-insecure-token"),
        ("cert and key belong", "--tls-cert and --tls-key belong"),
        ("target: ", _TARGET),
    ):
        text = text.replace(argument, option)
    for argument in ("ca", "cert", "key"):
        if text.startswith(f"{argument}: "):
            text = f"--tls-{text}"
    return text
