"""``sagastore-server config``: effective settings, their sources and their problems."""

from __future__ import annotations

import json
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sagastore_server.cli.settings_check import check
from sagastore_server.config.options import ConfigFile, Json, check_usage, fail, takes_settings
from sagastore_server.config.reference import json_schema, written
from sagastore_server.config.settings import Settings, SettingsError, examine
from sagastore_server.config.sources import Layers, Problem
from sagastore_server.security.masking import mask_credentials, mask_password


class _Row(NamedTuple):
    setting: str
    value: Any
    """As in JSON; secrets are masked."""
    origin: str
    name: str
    """Name of the variable or the file."""


@takes_settings
def config(
    *,
    config: ConfigFile = None,
    check_only: Annotated[
        bool, typer.Option("--check", help="Print the problems, one per line.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of the configuration file.")
    ] = False,
    as_json: Json = False,
    **given: str | bool | None,
) -> None:
    """Show the effective settings of `serve`, and the source of each.

    Takes the options of `serve`. Passwords are masked. With --check, the exit status is 1 if
    there are errors, and 0 otherwise, also with warnings.
    """
    if schema:
        _print_json(json_schema(Settings))
    elif check_only:
        # Imported here, because --help and the other options do not need it.
        from sagastore_server.telemetry import logs  # noqa: PLC0415

        # For the warning about a certificate that expires soon, on standard error.
        logs.configure("warning")
        _report(check(config, given), as_json=as_json)
    else:
        settings, layers, problems = examine(config, given)
        if settings is None or problems:
            error = SettingsError(problems)
            check_usage(error)
            fail(str(error))
        _show(_rows(settings, layers), as_json=as_json)


def _report(problems: list[Problem], *, as_json: bool) -> None:
    wrong = [problem for problem in problems if not problem.is_warning]
    if as_json:
        _print_json(
            {"good": not wrong, "problems": [_problem_document(problem) for problem in problems]}
        )
    else:
        for problem in problems:
            where = f" ({problem.origin})" if problem.origin else ""
            warning = "warning: " if problem.is_warning else ""
            typer.echo(f"{warning}{problem}{where}")
        if not wrong:
            typer.echo("The settings are valid.")
    if wrong:
        raise typer.Exit(1)


def _problem_document(problem: Problem) -> dict[str, Any]:
    return {
        "setting": problem.setting,
        "problem": problem.text,
        "origin": problem.origin.kind if problem.origin else None,
        "origin_name": problem.origin.name or None if problem.origin else None,
        "severity": "warning" if problem.is_warning else "error",
    }


def _rows(settings: Settings, layers: Layers) -> list[_Row]:
    return [
        _Row(name, _shown(getattr(settings, name), name), *layers.origin(name))
        for name in Settings.model_fields
    ]


def _shown(value: Any, name: str) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, SecretStr):
        return mask_password(value.get_secret_value())
    if isinstance(value, tuple):
        return ", ".join(_shown(one, name) for one in value)
    return mask_credentials(value) if name == "otlp_endpoint" else str(value)


def _show(rows: list[_Row], *, as_json: bool) -> None:
    if as_json:
        document = {
            row.setting: {
                "value": row.value,
                "origin": row.origin,
                "origin_name": row.name or None,
            }
            for row in rows
        }
        _print_json(document)
        return
    out = Console(highlight=False)
    cells = [
        (row.setting, written(row.value) or "-", f"{row.origin} {row.name}".rstrip())
        for row in rows
    ]
    if not out.is_terminal:
        _print_aligned([("SETTING", "VALUE", "ORIGIN"), *cells])
        return
    table = Table("setting", "value", "origin", box=None, header_style="bold", pad_edge=False)
    for row, texts in zip(rows, cells, strict=True):
        # Defaults are dimmed. Text, because a value may contain markup.
        style = "dim" if row.origin == "default" else ""
        table.add_row(*(Text(text, style=style, overflow="fold") for text in texts))
    out.print(table)


def _print_aligned(rows: list[tuple[str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for setting, value, origin in rows:
        typer.echo(f"{setting:{widths[0]}}  {value:{widths[1]}}  {origin}")


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
