"""The ``sagastore-server`` command."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from sagastore_server import __version__
from sagastore_server.cli import backup, inspect, status, token
from sagastore_server.cli import config as config_command
from sagastore_server.config import settings
from sagastore_server.config.options import ConfigFile, fail, takes_settings, wrong_usage

cli = typer.Typer(
    name="sagastore-server",
    help="SagaStore: keeps the messages of AI conversations, over gRPC.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sagastore-server {__version__}")
        raise typer.Exit


@cli.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options before the command."""


@cli.command()
@takes_settings
def serve(*, config: ConfigFile = None, **given: str | bool | None) -> None:
    """Serve until SIGTERM or Ctrl+C, then finish the calls under way and exit.

    Every option is also SAGASTORE_<OPTION> in the environment, and a name in
    the TOML file. The command line comes first, then the environment, then the
    file. `sagastore-server config` shows what is in force, and why.
    """
    # Half a second and more, which --help need not wait for.
    import structlog

    from sagastore_server import app
    from sagastore_server.cli import settings_check
    from sagastore_server.runtime import event_loop
    from sagastore_server.storage.errors import CannotOpenError
    from sagastore_server.telemetry import logs

    try:
        chosen = settings.load(config, **given)
        logs.configure(chosen.log_level)
        for problem in settings_check.advice(given):
            structlog.get_logger(__name__).warning("setting", problem=str(problem))
        event_loop.run(app.serve(chosen, _say))
    except settings.SettingsError as exc:
        wrong_usage(exc)
        fail(str(exc))
    except (app.ServerError, CannotOpenError) as exc:
        fail(str(exc))


cli.command()(config_command.config)
cli.command()(inspect.inspect)
cli.command()(status.status)
cli.command()(backup.backup)
cli.command()(backup.restore)
cli.add_typer(token.token)


def main() -> None:
    """Run the command."""
    cli()


def _say(text: str) -> None:
    """Show ``text`` to a person. Programs read the log, on standard error."""
    # Whoever does not want to read it may have closed standard output.
    with contextlib.suppress(OSError):
        typer.echo(text)
