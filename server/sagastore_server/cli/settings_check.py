"""What can be wrong with settings that are well-formed: the files they name, who can read them.

And the advice that ``serve`` gives as it starts.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sagastore_server.config.settings import Settings, examine
from sagastore_server.config.sources import (
    COMMAND_LINE,
    Layers,
    Origin,
    Problem,
    unknown_variables,
)
from sagastore_server.config.types import kind
from sagastore_server.security.masking import has_password


def check(config: Path | None, given: Mapping[str, Any]) -> list[Problem]:
    """Return everything that can be found wrong without starting a server, warnings last."""
    settings, layers, problems = examine(config, dict(given))
    problems += unknown_variables(Settings)
    if settings is not None:
        missing = list(_missing_inputs(settings, layers))
        problems += missing or _unusable_entrance(settings, layers)
        problems += _no_place_for_sqlite(settings, layers)
        problems += _exposed_secrets(settings, layers)
    problems += _exposed_passwords(layers)
    return sorted(problems, key=lambda problem: problem.is_warning)


def advice(given: Mapping[str, Any]) -> list[Problem]:
    """Return what ``serve`` warns of: misspelt variables, and a password that ``ps`` shows."""
    found = unknown_variables(Settings)
    dsn = given.get("postgres")
    if dsn is not None and has_password(dsn):
        found.append(
            Problem(
                "postgres",
                "others on this machine can see the password on the command line; put it into "
                "SAGASTORE_POSTGRES, the configuration file or PGPASSWORD",
                COMMAND_LINE,
                is_warning=True,
            )
        )
    return found


def _missing_inputs(settings: Settings, layers: Layers) -> Iterator[Problem]:
    for name, path in _inputs(settings):
        told = _unreadable(path)
        if told:
            yield Problem(name, f"{path} {told}", layers.origin(name))


def _unusable_entrance(settings: Settings, layers: Layers) -> Iterator[Problem]:
    """Look into the files of certificates and access, and at who could come in."""
    # Loading what reads certificates takes a while, which --help need not wait for.
    from sagastore_server.security.setup import SecuritySetup, SecuritySetupError  # noqa: PLC0415

    try:
        SecuritySetup(settings)
    except SecuritySetupError as exc:
        told = str(exc)
        named = (name for name, path in _inputs(settings) if str(path) in told)
        setting = next(named, "listen")
        yield Problem(setting, told, layers.origin(setting))


def _exposed_secrets(settings: Settings, layers: Layers) -> Iterator[Problem]:
    for name, path in _inputs(settings):
        if kind(Settings.model_fields[name]).is_secret and _others_read(path):
            told = f"others can read {path}; chmod o-r it"
            yield Problem(name, told, layers.origin(name), is_warning=True)


def _exposed_passwords(layers: Layers) -> Iterator[Problem]:
    if layers.origin("postgres") == COMMAND_LINE:
        yield from (problem for problem in advice(layers.values) if problem.is_warning)
    # In force or not: who reads it there knows it.
    dsn = layers.in_file.get("postgres")
    if isinstance(dsn, str) and has_password(dsn) and layers.config and _others_read(layers.config):
        told = f"holds a password, and others can read {layers.config}; chmod o-r it"
        yield Problem("postgres", told, Origin("file", str(layers.config)), is_warning=True)


def _no_place_for_sqlite(settings: Settings, layers: Layers) -> Iterator[Problem]:
    if not settings.names_sqlite:
        return  # A default folder is made; with PostgreSQL alone there is no file.
    path, folder = settings.sqlite, settings.sqlite.parent
    told = None
    if path.exists():
        told = _unreadable(path)
    elif not folder.is_dir():
        told = f"cannot be made: there is no folder {folder}"
    elif not os.access(folder, os.W_OK | os.X_OK):
        told = f"cannot be made: the folder {folder} may not be written to"
    if told:
        yield Problem("sqlite", f"{path} {told}", layers.origin("sqlite"))


def _inputs(settings: Settings) -> Iterator[tuple[str, Path]]:
    for name, field in Settings.model_fields.items():
        path = getattr(settings, name)
        if kind(field).is_input and path is not None:
            yield name, path


def _unreadable(path: Path) -> str | None:
    try:
        if path.is_dir():
            return "is a folder, not a file"
        with path.open("rb"):
            return None
    except FileNotFoundError:
        return "is not there"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"


def _others_read(path: Path) -> bool:
    """Whether everybody on this machine can read it; never on Windows, where modes say nothing."""
    try:
        mode = path.stat().st_mode
        return os.name != "nt" and stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)
    except OSError:
        return False
