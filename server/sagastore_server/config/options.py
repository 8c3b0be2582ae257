"""Command line options for the settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

from sagastore.commandline.errors import Failure, report, write_note
from sagastore.commandline.exit_status import ExitStatus
from sagastore_server.config.reference import Entry, entries, option_name, with_quotes
from sagastore_server.config.settings import Settings, SettingsError
from sagastore_server.config.sources import COMMAND_LINE, CONFIG_VARIABLE

_PROGRAM = "sagastore-server"

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        envvar=CONFIG_VARIABLE,
        show_envvar=False,
        help="TOML file with settings by name (log_level, ...).",
    ),
]
"""The option ``--config``."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs; also errors.")]
"""The option ``--json``."""


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command with one option for each setting.

    The command gets them as keyword arguments, unvalidated, for `settings.load`; None for an
    option that was not given.
    """
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    # Typer reads the signature and ignores **given.
    signature = inspect.Signature([*own, *_parameters()])
    command.__signature__ = signature  # type: ignore[attr-defined]
    return command


def check_usage(error: SettingsError) -> None:
    """Report the problems that are on the command line as wrong usage (exit status 2).

    Raises:
        typer.BadParameter: There are such problems.

    """
    problems = [
        f"{option_name(problem.setting)}: {problem.text}"
        for problem in error.problems
        if problem.origin == COMMAND_LINE
    ]
    if problems:
        raise typer.BadParameter("; ".join(problems))


def fail(
    line: str, status: ExitStatus = ExitStatus.FAILED, *, code: str = "FAILED_PRECONDITION"
) -> NoReturn:
    """Exit with one line on standard error; ``code`` is a gRPC status code, for ``--json``."""
    report(_PROGRAM, Failure(line, status, code, "COMMAND_FAILED"))
    raise typer.Exit(status)


def warn(line: str) -> None:
    """Print one line on standard error."""
    write_note(_PROGRAM, line)


def _parameters() -> Iterator[inspect.Parameter]:
    for entry in entries(Settings):
        option, annotation = _option(entry)
        yield inspect.Parameter(
            entry.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[annotation, option],
        )


def _option(entry: Entry) -> tuple[Any, Any]:
    switch = not entry.metavar
    option = typer.Option(
        entry.option.replace(" / ", "/"),
        metavar=entry.metavar or None,
        help=_help(entry),
        rich_help_panel=entry.group,
        show_default=False,
    )
    return option, (bool | None if switch else str | None)


def _help(entry: Entry) -> str:
    meaning = with_quotes(
        entry.meaning, lambda text: option_name(text) if text in Settings.model_fields else text
    )
    notes = [entry.bounds] if entry.bounds else []
    if entry.default:
        notes.append(f"default: {entry.default}")
    # Typer interprets square brackets as markup.
    return escape(f"{meaning} ({'; '.join(notes)})" if notes else meaning)
