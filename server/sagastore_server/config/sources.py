"""Sources of the settings: command line, environment and TOML file, with origins and errors."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource

from sagastore_server.config.types import expectation

ENV_PREFIX = "SAGASTORE_"
CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"

CLIENT_VARIABLES = frozenset(
    ENV_PREFIX + name
    for name in (
        "ALLOW_INSECURE_TOKEN",
        "TARGET",
        "TIMEOUT",
        "TLS",
        "TLS_CA",
        "TLS_CERT",
        "TLS_KEY",
        "TLS_SERVER_NAME",
        "TOKEN",
        "TOKEN_FILE",
        "TRACEBACK",
    )
)
"""Variables of the client's command. TLS_CERT and TLS_KEY are settings of the server as well."""

_FOREIGN = re.compile(
    # Tests and the demonstration of this project.
    r"SAGASTORE_(TEST_.*|DEMO_.*|LEGACY_DB"
    # Kubernetes sets these in every container if a service is named sagastore.
    r"|SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_.*)?)?)"
)
_RELATION = "relation"

_Model = TypeVar("_Model", bound=BaseSettings)


class Origin(NamedTuple):
    """Source of a value."""

    kind: str
    """``command line``, ``environment``, ``file`` or ``default``."""
    name: str = ""
    """The variable or the file."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.name else self.kind


COMMAND_LINE = Origin("command line")
DEFAULT = Origin("default")


class Problem(NamedTuple):
    """An error or a warning about a setting. Never contains the value of a secret."""

    setting: str
    """Name of the setting as it was written, or of the file if that is the problem."""
    text: str
    """The problem and the remedy, as the continuation of the name."""
    origin: Origin | None = None
    """Source of the value."""
    is_warning: bool = False
    """Whether the server starts nevertheless."""

    def __str__(self) -> str:
        return f"{self.setting}: {self.text}"


class SettingsError(Exception):
    """The settings are invalid. One line: each setting and its problem, without secrets."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Collect the problems in one message."""
        self.problems = tuple(problems)
        super().__init__("invalid settings: " + "; ".join(map(str, self.problems)))


class Layers(NamedTuple):
    """The values of all sources, merged by precedence."""

    values: dict[str, Any]
    """The effective values, not yet validated."""
    origins: dict[str, Origin]
    """Source of each value; a setting that is not here has its default."""
    config: Path | None
    """The file, if there is one."""
    problems: list[Problem]
    """Unknown names, and problems of the file itself."""
    in_file: dict[str, Any]
    """The values in the file, effective or not."""

    def __repr__(self) -> str:
        """Omit the values, which may be secrets."""
        return f"Layers({', '.join(self.origins)})"

    def origin(self, setting: str) -> Origin:
        """Return the source of the value of a setting."""
        return self.origins.get(setting, DEFAULT)


def gather(model: type[BaseSettings], config: Path | None, given: Mapping[str, Any]) -> Layers:
    """Read the settings from the file, the environment and the command line.

    Args:
        model: Defines the settings.
        config: A TOML file, or None.
        given: Values from the command line; None for an option that was not given.

    """
    layers = Layers({}, {}, config, [], {})
    if config is not None:
        _add_file(layers, model, config)
    variables = {name.upper(): name for name in os.environ}
    for setting, value in EnvSettingsSource(model)().items():
        name = variables.get(ENV_PREFIX + setting.upper(), ENV_PREFIX + setting.upper())
        _put(layers, setting, value, Origin("environment", name))
    for setting, value in given.items():
        if value is not None:
            _put(layers, setting, value, COMMAND_LINE)
    return layers


def validated(model: type[_Model], layers: Layers) -> tuple[_Model | None, list[Problem]]:
    """Return the settings, or their problems."""
    try:
        return model(**layers.values), []
    except ValidationError as exc:
        problems = exc.errors(include_url=False, include_input=False)
        return None, list(_problems(model, problems, layers))


def relation_error(problems: Iterable[tuple[str, str]]) -> PydanticCustomError:
    """Return the error that a model raises for settings that contradict each other."""
    return PydanticCustomError(_RELATION, "contradictory settings", {"of": list(problems)})


def unknown_variables(model: type[BaseModel]) -> list[Problem]:
    """Return the variables that look like settings, but are unknown to server and client."""
    ours = {ENV_PREFIX + name.upper() for name in model.model_fields} | {CONFIG_VARIABLE}
    known = ours | CLIENT_VARIABLES
    # Compared without the prefix, which would make all of them similar.
    ends = {name.removeprefix(ENV_PREFIX): name for name in known}
    found = []
    for name in sorted(os.environ):
        written = name.upper()
        if not written.startswith(ENV_PREFIX) or written in known or _FOREIGN.fullmatch(written):
            continue
        similar = _similar(written.removeprefix(ENV_PREFIX), ends)
        hint = f"; did you mean {ends[similar]}?" if similar else ""
        found.append(Problem(name, f"unknown variable{hint}", Origin("environment")))
    return found


def _put(layers: Layers, setting: str, value: Any, origin: Origin) -> None:
    layers.values[setting] = value
    layers.origins[setting] = origin


def _add_file(layers: Layers, model: type[BaseModel], config: Path) -> None:
    origin = Origin("file", str(config))
    try:
        table = _read(config)
    except ValueError as exc:
        layers.problems.append(Problem(str(config), str(exc), origin))
        return
    for name, value in table.items():
        setting = name.replace("-", "_")
        misplaced = _misplaced(name, value, layers, model)
        if misplaced:
            layers.problems.append(Problem(name, misplaced, origin))
        else:
            _put(layers, setting, value, origin)
            layers.in_file[setting] = value


def _read(config: Path) -> dict[str, Any]:
    try:
        # With a final newline; without one, tomllib reports an error there without its line.
        text = config.read_text(encoding="utf-8") + "\n"
    except OSError as exc:
        raise ValueError(f"cannot read the configuration file: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ValueError("the configuration file is not text in UTF-8") from exc
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        problem = str(exc).replace("at end of document", f"at line {text.count(chr(10))}, the end")
        raise ValueError(f"the configuration file is not valid TOML: {problem}") from exc


def _misplaced(name: str, value: Any, layers: Layers, model: type[BaseModel]) -> str | None:
    """Return why this entry of a file is invalid, whatever its value; None if it is not."""
    setting = name.replace("-", "_")
    if isinstance(value, dict):
        inner = next(iter(value), "...").replace("-", "_")
        known = f"{setting}_{inner}" if f"{setting}_{inner}" in model.model_fields else inner
        return f"is a table, but settings have no groups; write {known} = ... above all tables"
    if setting not in model.model_fields:
        return _unknown(setting, model)
    if setting in layers.values:
        return "is set twice, once with - and once with _"
    return None


def _unknown(setting: str, model: type[BaseModel]) -> str:
    similar = _similar(setting, model.model_fields) or _similar(setting.lower(), model.model_fields)
    return f"unknown setting; did you mean {similar}?" if similar else "unknown setting"


def _similar(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def _problems(
    model: type[BaseModel], errors: Iterable[ErrorDetails], layers: Layers
) -> Iterator[Problem]:
    for error in errors:
        if error["type"] == _RELATION:
            for setting, problem in error["ctx"]["of"]:
                yield Problem(setting, problem, layers.origin(setting))
        else:
            setting = str(error["loc"][0])
            yield Problem(setting, _message(model, setting, error), layers.origin(setting))


def _message(model: type[BaseModel], setting: str, error: ErrorDetails) -> str:
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return _unknown(setting, model)
    return f"must be {expectation(model.model_fields[setting])}"
