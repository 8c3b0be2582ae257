"""The options that every command accepts, before and after its name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from sagastore.cli.failures import execute
from sagastore.cli.settings import DEFAULT_TARGET, Settings
from sagastore.commandline.program import CONTEXT, Command, Group

__all__ = ["Job", "command", "group", "takes_common_options"]

Job = Coroutine[Any, Any, int]
"""The coroutine of a command; it returns the exit status."""

_PANEL = "Common options"
_CONNECTION = "Connection"


class _Option(NamedTuple):
    field: str
    """The field of `Settings`."""
    names: tuple[str, ...]
    type: Any
    help: str
    metavar: str | None = None
    variable: str | None = None
    """The environment variable; only the program's own options read it."""
    panel: str | None = None
    minimum: float | None = None

    @property
    def connects(self) -> bool:
        """Whether another command needs the option to reach the same server."""
        return self.field == "target" or self.panel == _CONNECTION

    def words(self, value: Any) -> tuple[str, ...]:
        """Return the option as it is written on a command line."""
        return self.names[:1] if self.type is bool else (self.names[0], str(value))


_OPTIONS = (
    _Option(
        "target",
        ("--target",),
        str,
        f"The server, or several separated by commas. Default: {DEFAULT_TARGET}.",
        "HOST:PORT",
        "SAGASTORE_TARGET",
    ),
    _Option("as_json", ("--json",), bool, "Print JSON or JSON Lines, also for errors and remarks."),
    _Option("quiet", ("--quiet", "-q"), bool, "Show no progress."),
    _Option(
        "timeout",
        ("--timeout",),
        float,
        "Timeout of a call (default 10); in import and export, maximum time without "
        "progress (default 60).",
        "SECONDS",
        "SAGASTORE_TIMEOUT",
        minimum=0.001,
    ),
    _Option(
        "token_file",
        ("--token-file",),
        Path,
        "File with the bearer token. Default: the token in `$SAGASTORE_TOKEN`.",
        "FILE",
        "SAGASTORE_TOKEN_FILE",
        _CONNECTION,
    ),
    _Option(
        "allow_insecure_token",
        ("--allow-insecure-token",),
        bool,
        "Send the token in plain text to other machines.",
        None,
        "SAGASTORE_ALLOW_INSECURE_TOKEN",
        _CONNECTION,
    ),
    _Option(
        "tls",
        ("--tls",),
        bool,
        "Use TLS; the options below imply it.",
        None,
        "SAGASTORE_TLS",
        _CONNECTION,
    ),
    _Option(
        "tls_ca",
        ("--tls-ca",),
        Path,
        "Certificates of the trusted authorities (PEM).",
        "FILE",
        "SAGASTORE_TLS_CA",
        _CONNECTION,
    ),
    _Option(
        "tls_cert",
        ("--tls-cert",),
        Path,
        "Client certificate (PEM); requires --tls-key.",
        "FILE",
        "SAGASTORE_TLS_CERT",
        _CONNECTION,
    ),
    _Option(
        "tls_key",
        ("--tls-key",),
        Path,
        "Private key of the client certificate (PEM).",
        "FILE",
        "SAGASTORE_TLS_KEY",
        _CONNECTION,
    ),
    _Option(
        "tls_server_name",
        ("--tls-server-name",),
        str,
        "The name in the server's certificate, if it differs from --target.",
        "NAME",
        "SAGASTORE_TLS_SERVER_NAME",
        _CONNECTION,
    ),
)


def takes_common_options(callback: Callable[..., None]) -> Callable[..., None]:
    """Give the callback of the program the common options, also from the environment.

    It sets `ctx.obj` to the `Settings` before it calls `callback` with the other parameters.
    """
    return _with_options(callback, list(_parameters(environment=True)))


def group(name: str, purpose: str) -> typer.Typer:
    """Return a group of commands that takes the common options as well."""

    def callback(ctx: typer.Context) -> None:
        del ctx

    found = typer.Typer(
        name=name,
        help=purpose,
        cls=Group,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        context_settings=CONTEXT,
    )
    parameters = list(_parameters(visible=False))
    found.callback(cls=Group)(_with_options(callback, parameters))
    return found


def command(
    app: typer.Typer, *, epilog: str, name: str | None = None, no_args_is_help: bool = True
) -> Callable[[Callable[..., Job]], Callable[..., None]]:
    """Return a decorator that registers a function as a command of `app`.

    The function receives the `typer.Context`, whose `obj` is the `Settings`, and its
    parameters by name; it returns the coroutine to run. Any error, also during that
    call, becomes one line on standard error and an exit status.
    """

    def decorate(function: Callable[..., Job]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(ctx: typer.Context, **given: Any) -> None:
            execute(lambda: function(ctx, **given))

        parameters = list(_parameters(panel=_PANEL))
        app.command(
            name,
            cls=Command,
            epilog=epilog,
            no_args_is_help=no_args_is_help,
            context_settings=CONTEXT,
        )(_with_options(run, parameters))
        return run

    return decorate


def _with_options(
    function: Callable[..., None], parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    """Return the function with the common options, which it finds in `ctx.obj`."""

    @functools.wraps(function)
    def run(ctx: typer.Context, **given: Any) -> None:
        common = {option.field: given.pop(option.field) for option in _OPTIONS}
        # A flag that is not given is False here, and may be given on the other side.
        chosen = {name: value for name, value in common.items() if value not in (None, False)}
        before = ctx.obj or Settings()
        ctx.obj = replace(before, **chosen, given={**before.given, **_given(ctx, chosen)})
        function(ctx, **given)

    hints = get_type_hints(function, include_extras=True) | {"return": None}
    own = list(inspect.signature(function).parameters.values())
    hints |= {parameter.name: parameter.annotation for parameter in parameters}
    every = [one.replace(annotation=hints[one.name]) for one in (*own, *parameters)]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = hints
    return run


def _given(ctx: typer.Context, chosen: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the words of the connection options that are on the command line."""
    return {
        option.field: option.words(chosen[option.field])
        for option in _OPTIONS
        if option.connects and option.field in chosen and _is_on_command_line(ctx, option.field)
    }


def _is_on_command_line(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _parameters(
    *, environment: bool = False, panel: str | None = None, visible: bool = True
) -> Iterator[inspect.Parameter]:
    """Yield the common options; those of the connection are shown only by the program's help."""
    for option in _OPTIONS:
        flag = option.type is bool
        declared = typer.Option(
            *option.names,
            metavar=option.metavar,
            envvar=option.variable if environment else None,
            show_default=False,
            min=option.minimum,
            help=option.help,
            hidden=not visible or (panel is not None and option.panel is not None),
            rich_help_panel=panel or option.panel,
        )
        yield inspect.Parameter(
            option.field,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if flag else None,
            annotation=Annotated[bool if flag else option.type | None, declared],
        )
