"""The options that every command accepts, before or after its name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Annotated, Any, get_type_hints

import typer

from sagastore.cli.failures import execute
from sagastore.cli.settings import Settings

__all__ = ["Job", "command"]

Job = Coroutine[Any, Any, int]
"""The coroutine of a command; it returns the exit status."""

_PANEL = "Common options"

_TARGET = Annotated[
    str | None,
    typer.Option("--target", metavar="HOST:PORT", help="The server.", rich_help_panel=_PANEL),
]
_JSON = Annotated[
    bool,
    typer.Option("--json", help="Print JSON.", rich_help_panel=_PANEL),
]


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
        def run(ctx: typer.Context, *, target: str | None, as_json: bool, **given: Any) -> None:
            settings: Settings = ctx.obj
            ctx.obj = replace(
                settings, target=target or settings.target, as_json=as_json or settings.as_json
            )
            execute(lambda: function(ctx, **given))

        _show_options(run, function)
        app.command(name, epilog=epilog, no_args_is_help=no_args_is_help)(run)
        return run

    return decorate


def _show_options(run: Callable[..., None], function: Callable[..., Job]) -> None:
    """Set the signature of the wrapper: the function's parameters and the common ones."""
    hints = get_type_hints(function, include_extras=True)
    hints |= {"target": _TARGET, "as_json": _JSON, "return": None}
    own = list(inspect.signature(function).parameters.values())
    keyword = inspect.Parameter.KEYWORD_ONLY
    common = [
        inspect.Parameter("target", keyword, default=None),
        inspect.Parameter("as_json", keyword, default=False),
    ]
    parameters = [p.replace(annotation=hints[p.name]) for p in (*own, *common)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = hints
