"""Reference of the settings, for `--help`, docs/reference/configuration.md and the JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, SecretStr

from sagastore_server.config.sources import ENV_PREFIX
from sagastore_server.config.types import (
    bounds,
    expectation,
    is_switch,
    kind,
    plain_number,
)

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

GROUPS = {
    "listen": "Serving",
    "sqlite": "Storage",
    "postgres": "PostgreSQL",
    "tls_cert": "Security",
    "max_request_bytes": "Limits",
    "ops_listen": "Observability",
}
"""First setting of each group. The others of the group follow it in the model."""

_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
_QUOTED = re.compile(r"``(.+?)``")


_PAIRED = 21
"""Characters of the longest option with a second one that starts with ``--no-``. Longer pairs would
cut off the names of all options in help of 100 columns."""


class Entry(NamedTuple):
    """Description of a setting."""

    name: str
    group: str
    option: str
    """Option of the command line; for a boolean both forms, unless it is long."""
    metavar: str
    """Placeholder of the value of the option; empty for a boolean."""
    variable: str
    values: str
    """Valid values, including bounds."""
    bounds: str
    default: str
    """Empty if there is none."""
    meaning: str
    """Description in one line; settings and values are in double backticks."""


def entries(model: type[BaseModel]) -> Iterator[Entry]:
    """Yield the description of every setting, in the order of the model."""
    group = "Options"
    for name, field in model.model_fields.items():
        group = GROUPS.get(name, group)
        option = option_name(name)
        yield Entry(
            name=name,
            group=group,
            option=_both_forms(option) if is_switch(field) else option,
            metavar=kind(field).metavar,
            variable=ENV_PREFIX + name.upper(),
            values=re.sub(r"^an? ", "", expectation(field)),
            bounds=bounds(field),
            default=_default(field),
            meaning=" ".join((field.description or "").split()),
        )


def _both_forms(option: str) -> str:
    return f"{option} / --no-{option[2:]}" if len(option) <= _PAIRED else option


def option_name(setting: str) -> str:
    """Return the command line option of a setting."""
    return "--" + setting.replace("_", "-")


def with_quotes(meaning: str, quoted: Callable[[str], str]) -> str:
    """Return ``meaning`` with each quoted name or value replaced by ``quoted`` of it."""
    return _QUOTED.sub(lambda found: quoted(found[1]), meaning)


def markdown(model: type[BaseModel]) -> str:
    """Return a table of all settings."""
    lines = [
        "| setting | option | variable | value | default | meaning |",
        "|---|---|---|---|---|---|",
    ]
    group = ""
    for entry in entries(model):
        if entry.group != group:
            group = entry.group
            lines.append(f"| **{group}** | | | | | |")
        option = f"{entry.option} {entry.metavar}".rstrip()
        default = f"`{entry.default}`" if entry.default else "none"
        if model.model_fields[entry.name].default_factory is not None:
            default = entry.default
        meaning = with_quotes(entry.meaning, lambda text: f"`{text}`")
        lines.append(
            f"| `{entry.name}` | `{option}` | `{entry.variable}` | {entry.values} | {default} "
            f"| {meaning} |"
        )
    return "\n".join(lines) + "\n"


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the configuration file.

    It has each name with ``_`` and with ``-``, both of which the file may use.
    """
    generated = model.model_json_schema()["properties"]
    properties = {
        entry.name: _property(generated[entry.name], entry, model.model_fields[entry.name])
        for entry in entries(model)
    }
    dashed = {
        name.replace("_", "-"): {"$ref": f"#/properties/{name}"}
        for name in properties
        if "_" in name
    }
    return {
        "$schema": _SCHEMA,
        "title": "Configuration of sagastore-server",
        "description": "The TOML file that --config names.",
        "type": "object",
        "properties": properties | dashed,
        "additionalProperties": False,
    }


def _property(generated: dict[str, Any], entry: Entry, field: FieldInfo) -> dict[str, Any]:
    # TOML has no null: an optional setting is omitted.
    one = next((part for part in generated.get("anyOf", []) if part.get("type") != "null"), None)
    keywords = {name: value for name, value in (one or generated).items() if name in _KEYWORDS}
    keywords["description"] = with_quotes(entry.meaning, str)
    if entry.default and field.default_factory is None:
        keywords["default"] = field.default
    return keywords


_KEYWORDS = (
    "type",
    "enum",
    "format",
    "items",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
)
"""Keywords taken from the schema that pydantic generates."""


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        # The path differs between users.
        return "sagastore.db in your data directory"
    return written(field.default)


def written(value: object) -> str:
    """Return a value as text; a secret is masked, and None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, SecretStr):
        return str(value)
    if isinstance(value, tuple):
        return ", ".join(map(written, value))
    return plain_number(value)
