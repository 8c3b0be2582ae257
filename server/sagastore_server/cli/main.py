"""The ``sagastore-server`` command."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from sagastore.commandline.program import CONTEXT, Command
from sagastore_server import __version__
from sagastore_server.cli import backup, inspect, status, token
from sagastore_server.cli import config as config_command
from sagastore_server.cli.program import ServerProgram
from sagastore_server.config import settings
from sagastore_server.config.options import ConfigFile, Json, check_usage, fail, takes_settings

cli = typer.Typer(
    name="sagastore-server",
    help="SagaStore: a gRPC storage service for the messages of AI conversations.",
    cls=ServerProgram,
    rich_markup_mode="markdown",
    context_settings=CONTEXT,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sagastore-server {__version__}")
        raise typer.Exit


@cli.callback(
    epilog="`sagastore-server COMMAND -h` explains a command. The options above can be given "
    "before and after it."
)
def _common(
    *,
    config: ConfigFile = None,
    as_json: Json = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Define the options before the command; `ServerProgram` passes them on."""
    del config, as_json, version


@cli.command(cls=Command)
@takes_settings
def serve(
    *,
    config: ConfigFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print errors as JSON, and no greeting.")
    ] = False,
    **given: str | bool | None,
) -> None:
    """Serve until SIGTERM or Ctrl+C, then drain the calls in progress and exit.

    Every option can also be set by the variable `SAGASTORE_<OPTION>` and in the TOML file.
    The command line takes precedence over the environment, and that over the file.
    `sagastore-server config` shows the effective settings and their sources.
    """
    # Imported here, because it takes half a second and --help does not need it.
    import structlog

    from sagastore_server import app
    from sagastore_server.cli import settings_check
    from sagastore_server.config.secrets import secrets_of
    from sagastore_server.runtime import event_loop
    from sagastore_server.storage.errors import CannotOpenError
    from sagastore_server.telemetry import logs

    try:
        chosen = settings.load(config, **given)
        logs.configure(chosen.log_level, secrets=secrets_of(chosen))
        logs.capture_unhandled()
        for problem in settings_check.advice(given):
            structlog.get_logger(__name__).warning("setting", problem=str(problem))
        say = _say_nothing if as_json else _print
        if chosen.workers > 1:
            from sagastore_server.workers import serve as workers

            event_loop.run(workers.serve(chosen, say))
        else:
            event_loop.run(app.serve(chosen, say))
    except settings.SettingsError as exc:
        check_usage(exc)
        fail(str(exc))
    except (app.ServerError, CannotOpenError) as exc:
        fail(str(exc))


for command in (
    config_command.config,
    inspect.inspect,
    status.status,
    backup.backup,
    backup.restore,
):
    cli.command(cls=Command)(command)
cli.add_typer(token.token)


def main() -> None:
    """Run the command."""
    cli()


def _print(text: str) -> None:
    """Print ``text`` for people. Programs read the log, on standard error."""
    # Standard output may be closed.
    with contextlib.suppress(OSError):
        typer.echo(text)


def _say_nothing(text: str) -> None:
    """Print nothing, for ``--json``."""
    del text
