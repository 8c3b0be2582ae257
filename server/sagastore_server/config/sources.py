"""Where each setting comes from, and what is wrong with it."""

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
"""What the client's command reads. TLS_CERT and TLS_KEY are settings of the server as well."""

_FOREIGN = re.compile(
    # Our own tests and demonstration.
    r"SAGASTORE_(TEST_.*|DEMO_.*|LEGACY_DB"
    # Kubernetes tells every container of a service that is named sagastore.
    r"|SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_.*)?)?)"
)
_RELATION = "relation"

_Model = TypeVar("_Model", bound=BaseSettings)


class Origin(NamedTuple):
    """Where a value was found."""

    kind: str
    """``command line``, ``environment``, ``file`` or ``default``."""
    name: str = ""
    """The variable or the file."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.name else self.kind


COMMAND_LINE = Origin("command line")
DEFAULT = Origin("default")


class Problem(NamedTuple):
    """One thing that is wrong. Never holds the value of a secret."""

    setting: str
    """The name as it was written; of the file, if the problem is the file itself."""
    text: str
    """What is wrong with it, and what to do; goes on where the name ends."""
    origin: Origin | None = None
    """Where it was found."""
    is_warning: bool = False
    """Whether the server can be started all the same."""

    def __str__(self) -> str:
        return f"{self.setting}: {self.text}"


class SettingsError(Exception):
    """The settings cannot be used; the line says which and why, and shows no secret."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Say what the problems are."""
        self.problems = tuple(problems)
        super().__init__("bad settings: " + "; ".join(map(str, self.problems)))


class Layers(NamedTuple):
    """What was found everywhere, one over the other."""

    values: dict[str, Any]
    """What is in force, not yet checked."""
    origins: dict[str, Origin]
    """Where each of the values is from; what is missing here is a default."""
    config: Path | None
    """The file that was read."""
    problems: list[Problem]
    """Unknown names, and what is wrong with the file itself."""
    in_file: dict[str, Any]
    """What the file says, in force or not."""

    def origin(self, setting: str) -> Origin:
        """Return where the value of a setting is from."""
        return self.origins.get(setting, DEFAULT)


def gather(model: type[BaseSettings], config: Path | None, given: Mapping[str, Any]) -> Layers:
    """Look for settings in the file, the environment and the command line.

    Args:
        model: What settings there are.
        config: A TOML file, if there is one.
        given: What the command line says; None where it says nothing.

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
    """Return the settings, or what is wrong with them."""
    try:
        return model(**layers.values), []
    except ValidationError as exc:
        problems = exc.errors(include_url=False, include_input=False)
        return None, list(_explained(model, problems, layers))


def relation_error(problems: Iterable[tuple[str, str]]) -> PydanticCustomError:
    """Return what a model raises for settings that do not go together, each with its reason."""
    return PydanticCustomError(_RELATION, "settings do not go together", {"of": list(problems)})


def unknown_variables(model: type[BaseModel]) -> list[Problem]:
    """Return the variables that look like settings, and are neither ours nor the client's."""
    ours = {ENV_PREFIX + name.upper() for name in model.model_fields} | {CONFIG_VARIABLE}
    known = ours | CLIENT_VARIABLES
    # What they all begin with would make them all similar.
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
        # With an end to its last line, or a mistake there would be told without its number.
        text = config.read_text(encoding="utf-8") + "\n"
    except OSError as exc:
        raise ValueError(f"cannot read the configuration: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ValueError("the configuration is not text in UTF-8") from exc
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        told = str(exc).replace("at end of document", f"at line {text.count(chr(10))}, the end")
        raise ValueError(f"the configuration is not valid TOML: {told}") from exc


def _misplaced(name: str, value: Any, layers: Layers, model: type[BaseModel]) -> str | None:
    """Say why this cannot be in a file at all."""
    setting = name.replace("-", "_")
    if isinstance(value, dict):
        inner = next(iter(value), "...").replace("-", "_")
        known = f"{setting}_{inner}" if f"{setting}_{inner}" in model.model_fields else inner
        return f"is a table, but settings are not grouped; write {known} = ... above all tables"
    if setting not in model.model_fields:
        return _unknown(setting, model)
    if setting in layers.values:
        return "is there twice, once with - and once with _"
    return None


def _unknown(setting: str, model: type[BaseModel]) -> str:
    similar = _similar(setting, model.model_fields) or _similar(setting.lower(), model.model_fields)
    return f"unknown setting; did you mean {similar}?" if similar else "unknown setting"


def _similar(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def _explained(
    model: type[BaseModel], errors: Iterable[ErrorDetails], layers: Layers
) -> Iterator[Problem]:
    for error in errors:
        if error["type"] == _RELATION:
            for setting, told in error["ctx"]["of"]:
                yield Problem(setting, told, layers.origin(setting))
        else:
            setting = str(error["loc"][0])
            yield Problem(setting, _in_words(model, setting, error), layers.origin(setting))


def _in_words(model: type[BaseModel], setting: str, error: ErrorDetails) -> str:
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return _unknown(setting, model)
    return f"must be {expectation(model.model_fields[setting])}"
