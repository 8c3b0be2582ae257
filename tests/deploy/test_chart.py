"""The Helm chart agrees with the server, its image and its settings. Needs no helm."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from ruamel.yaml import YAML

from sagastore_server.config.settings import Settings
from scripts.write_chart import CHART, MANAGED, generated

ROOT = Path(__file__).parents[2]
TEMPLATES = {path.name: path.read_text("utf-8") for path in (CHART / "templates").iterdir()}
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text(encoding="utf-8")
SERVER = tomllib.loads((ROOT / "server" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SETTING = re.compile(r"^ *([a-z_]+) = ", re.MULTILINE)
"""A line of the server's TOML file in a template."""


def read_yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


VALUES: dict[str, Any] = read_yaml((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_generated_part_is_current(path: Path) -> None:
    """Otherwise: make docs."""
    assert path.read_text(encoding="utf-8") == generated()[path]


def test_schema_is_valid_and_accepts_the_defaults() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(VALUES)


def test_schema_describes_every_value() -> None:
    def compare(values: dict[str, Any], schema: dict[str, Any]) -> None:
        assert values.keys() == schema["properties"].keys() - {"global"}
        for name, value in values.items():
            if name != "settings" and "properties" in schema["properties"][name]:
                compare(value, schema["properties"][name])

    compare(VALUES, SCHEMA)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "standby"},
        {"replicaCount": 0},
        {"replicas": 3},
        {"settings": {"max_callz": 3}},
        {"settings": {"max_calls": 0}},
        {"settings": {"listen": "0.0.0.0:1"}},
        {"image": {"digest": "sha256:1234"}},
        {"tls": {"secret": "mine"}},
    ],
    ids=str,
)
def test_wrong_value_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMA).validate(VALUES | wrong)


def test_templates_use_existing_settings_and_set_all_that_values_cannot() -> None:
    written = {name for text in TEMPLATES.values() for name in SETTING.findall(text)}
    variables = {
        name.lower() for text in TEMPLATES.values() for name in re.findall(r"SAGASTORE_(\w+)", text)
    }
    assert written | variables == set(MANAGED)
    assert set(MANAGED) <= set(Settings.model_fields)


def test_templates_use_existing_values() -> None:
    for text in TEMPLATES.values():
        for name in re.findall(r"\.Values\.([A-Za-z_.]+)", text):
            schema = SCHEMA
            for part in name.split("."):
                assert part in schema["properties"], f".Values.{name}"
                schema = schema["properties"][part]


def test_every_value_is_used() -> None:
    text = "".join(TEMPLATES.values())
    assert [name for name in VALUES if f".Values.{name}" not in text] == []


def test_chart_has_the_version_of_the_server() -> None:
    chart = read_yaml((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (SERVER["version"], SERVER["version"])


def test_pods_fit_the_image() -> None:
    """Entry point, user, folder of the data and port are those of the Dockerfile."""
    pod = TEMPLATES["_helpers.tpl"]
    (program,) = re.findall(r'^ENTRYPOINT \["(.+)"\]$', DOCKERFILE, re.MULTILINE)
    assert program in SERVER["scripts"]
    assert "args: [serve, --config, " in pod
    (user,) = re.findall(r"^USER (\d+):\1$", DOCKERFILE, re.MULTILINE)
    for name in ("runAsUser", "runAsGroup", "fsGroup"):
        assert f"{name}: {user}\n" in pod
    (folder,) = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    assert f"mountPath: {folder}}}" in pod
    assert f'sqlite = "{folder}/sagastore.db"' in TEMPLATES["configmap.yaml"]
    (port,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert f"containerPort: {port}}}" in pod
    assert f'listen = "0.0.0.0:{port}"' in pod


def test_time_to_end_a_pod_has_the_default_of_the_server() -> None:
    default = Settings.model_fields["drain_seconds"].default
    assert f"$drain := {default:g} -" in TEMPLATES["_helpers.tpl"]
    pool = Settings.model_fields["postgres_pool_max"].default
    assert f"(default {pool} .Values.settings.postgres_pool_max)" in TEMPLATES["NOTES.txt"]
