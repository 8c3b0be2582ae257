"""Checks of valid settings against the system: the files that they name, and who can read those."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sagastore_server.config.settings import Settings, examine
from sagastore_server.config.sources import (
    COMMAND_LINE,
    ENV_PREFIX,
    Layers,
    Origin,
    Problem,
    unknown_variables,
)
from sagastore_server.config.types import connection_strings, kind
from sagastore_server.security.masking import has_password

_CONNECTIONS = ("postgres", "postgres_replicas")
"""Settings with connection strings."""


def check(config: Path | None, given: Mapping[str, Any]) -> list[Problem]:
    """Return the problems that can be found without starting a server, warnings last."""
    settings, layers, problems = examine(config, dict(given))
    problems += unknown_variables(Settings)
    if settings is not None:
        missing = list(_missing_inputs(settings, layers))
        problems += missing or _unusable_security(settings, layers)
        problems += _exposed_ops_port(settings, layers)
        problems += _unusable_sqlite(settings, layers)
        if settings.forwarding_conflict:
            origin = layers.origin("forward")
            problems.append(Problem("forward", settings.forwarding_conflict, origin))
        problems += _exposed_secrets(settings, layers)
    problems += _exposed_passwords(layers)
    return sorted(problems, key=lambda problem: problem.is_warning)


def advice(given: Mapping[str, Any]) -> list[Problem]:
    """Return the warnings of `serve`: unknown variables, and a password on the command line."""
    found = unknown_variables(Settings)
    for name in _CONNECTIONS:
        if _has_password(given.get(name)):
            found.append(
                Problem(
                    name,
                    "other users of this machine can see the password on the command line; use "
                    f"{ENV_PREFIX}{name.upper()}, the configuration file or PGPASSWORD",
                    COMMAND_LINE,
                    is_warning=True,
                )
            )
    return found


def _has_password(written: object) -> bool:
    """Whether a setting of `_CONNECTIONS`, as it is written, contains a password."""
    strings = connection_strings(written)
    if not isinstance(strings, list):
        return False
    return any(isinstance(one, str) and has_password(one) for one in strings)


def _missing_inputs(settings: Settings, layers: Layers) -> Iterator[Problem]:
    for name, path in _inputs(settings):
        text = _unreadable(path)
        if text:
            yield Problem(name, f"{path} {text}", layers.origin(name))


def _unusable_security(settings: Settings, layers: Layers) -> Iterator[Problem]:
    """Check the certificates, the access file, and the exposure of the address."""
    # Imported here, because it takes 0.1 s and --help does not need it.
    from sagastore_server.security.setup import SecuritySetup, SecuritySetupError  # noqa: PLC0415

    try:
        SecuritySetup(settings)
    except SecuritySetupError as exc:
        text = str(exc)
        named = (name for name, path in _inputs(settings) if str(path) in text)
        setting = next(named, "listen")
        yield Problem(setting, text, layers.origin(setting))


def _exposed_ops_port(settings: Settings, layers: Layers) -> Iterator[Problem]:
    # Imported here for the same reason.
    from sagastore_server.telemetry.setup import TelemetryError, check_exposure  # noqa: PLC0415

    try:
        check_exposure(settings)
    except TelemetryError as exc:
        text = str(exc).removeprefix("ops_listen ")
        yield Problem("ops_listen", text, layers.origin("ops_listen"))


def _exposed_secrets(settings: Settings, layers: Layers) -> Iterator[Problem]:
    for name, path in _inputs(settings):
        if kind(Settings.model_fields[name]).is_secret and _others_read(path):
            text = f"other users can read {path}; run chmod o-r on it"
            yield Problem(name, text, layers.origin(name), is_warning=True)


def _exposed_passwords(layers: Layers) -> Iterator[Problem]:
    options = {
        name: layers.values[name] for name in _CONNECTIONS if layers.origin(name) == COMMAND_LINE
    }
    yield from (problem for problem in advice(options) if problem.is_warning)
    if layers.config is None:
        return
    # Even if another source overrides it: the file discloses it.
    for name in _CONNECTIONS:
        if _has_password(layers.in_file.get(name)) and _others_read(layers.config):
            text = f"other users can read this password; run chmod o-r {layers.config}"
            yield Problem(name, text, Origin("file", str(layers.config)), is_warning=True)


def _unusable_sqlite(settings: Settings, layers: Layers) -> Iterator[Problem]:
    if not settings.names_sqlite:
        return  # The default folder is created; with PostgreSQL alone there is no file.
    path, folder = settings.sqlite, settings.sqlite.parent
    text = None
    if path.exists():
        text = _unreadable(path)
    elif not folder.is_dir():
        text = f"cannot be created: folder {folder} does not exist"
    elif not os.access(folder, os.W_OK | os.X_OK):
        text = f"cannot be created: folder {folder} is not writable"
    if text:
        yield Problem("sqlite", f"{path} {text}", layers.origin("sqlite"))


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
        return "does not exist"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"


def _others_read(path: Path) -> bool:
    """Whether all users can read it. Always False on Windows, which has no such modes."""
    try:
        mode = path.stat().st_mode
        return os.name != "nt" and stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)
    except OSError:
        return False
