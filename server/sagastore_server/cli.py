"""The ``sagastore-server`` command."""

from __future__ import annotations

import contextlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from sagastore_server import __version__, app, backups, inspection
from sagastore_server.ops import logs, loop, settings
from sagastore_server.ops.address import Address
from sagastore_server.storage.errors import CannotOpenError

cli = typer.Typer(
    name="sagastore-server",
    help="SagaStore: keeps the messages of AI conversations, over gRPC.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class LogLevel(StrEnum):
    """Values of --log-level."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sagastore-server {__version__}")
        raise typer.Exit


def _address(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(Address.parse(text))
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


@cli.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options before the command."""


@cli.command()
def serve(
    *,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            callback=_address,
            help=f"Address to listen on; port 0 takes a free one. Default: "
            f"{settings.DEFAULT_LISTEN}.",
        ),
    ] = None,
    sqlite: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="SQLite file; made if it is not there. A legacy memory.db is taken over. "
            "Default: sagastore.db in your data directory.",
        ),
    ] = None,
    postgres: Annotated[
        str | None,
        typer.Option(
            metavar="DSN",
            help="Keep messages in PostgreSQL instead: postgresql://USER@HOST/DATABASE. With "
            "--sqlite as well, the service can move from the file to PostgreSQL while it runs "
            "(sagastore migrate). Put a password into SAGASTORE_POSTGRES or PGPASSWORD: others "
            "can see a command line.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar=settings.ENV_PREFIX + "CONFIG",
            show_envvar=False,
            help="TOML file with these options by name (log_level, ...).",
        ),
    ] = None,
    allow_insecure: Annotated[
        bool | None,
        typer.Option(
            "--allow-insecure",
            help="Listen beyond this machine although there is neither TLS nor authentication.",
            show_default=False,
        ),
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0,
            max=3600,
            help="How long calls may go on after SIGTERM or Ctrl+C. Default: 30.",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None, typer.Option(help="Least severe messages logged. Default: info.")
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl+C, then finish the calls under way and exit.

    Every option is also SAGASTORE_<OPTION> in the environment, and a name in
    the TOML file. The command line comes first, then the environment, then the
    file.
    """
    try:
        chosen = settings.load(
            config,
            listen=listen,
            sqlite=sqlite,
            postgres=postgres,
            allow_insecure=allow_insecure,
            drain_seconds=drain_seconds,
            log_level=None if log_level is None else log_level.value,
        )
        logs.configure(chosen.log_level)
        loop.run(app.serve(chosen, _say))
    except (settings.SettingsError, app.StartupError, CannotOpenError) as exc:
        _fail(str(exc))


cli.command()(inspection.inspect)
cli.command()(backups.backup)
cli.command()(backups.restore)


def main() -> None:
    """Run the command."""
    cli()


def _say(text: str) -> None:
    """Show ``text`` to a person. Programs read the log, on standard error."""
    # Whoever does not want to read it may have closed standard output.
    with contextlib.suppress(OSError):
        typer.echo(text)


def _fail(line: str) -> NoReturn:
    typer.echo(f"sagastore-server: {' '.join(line.split())}", err=True)
    raise typer.Exit(1)
