"""The sample files of Patroni are those that `make test-patroni` runs, and keep Patroni's rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_chart import ROOT, read_yaml
from tests.patroni.cluster import SETTINGS, PatroniCluster

PAGE = (ROOT / "docs" / "how-to" / "patroni.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def dynamic() -> dict[str, Any]:
    settings = read_yaml((SETTINGS / "patroni.yml").read_text(encoding="utf-8"))
    found: dict[str, Any] = settings["bootstrap"]["dcs"]
    return found


def test_environment_file_has_the_variables_of_the_test(tmp_path: Path) -> None:
    lines = (SETTINGS / "node.env").read_text(encoding="utf-8").splitlines()
    named = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    cluster = PatroniCluster(tmp_path, tmp_path)
    used = {name for name in cluster.nodes["db1"].environment if name.startswith("PATRONI_")}
    cluster.close()
    assert named == used


def test_times_keep_the_rule_of_patroni(dynamic: dict[str, Any]) -> None:
    """https://patroni.readthedocs.io/en/latest/dynamic_configuration.html"""
    assert dynamic["ttl"] >= 20
    assert dynamic["loop_wait"] >= 1
    assert dynamic["retry_timeout"] >= 3
    assert dynamic["loop_wait"] + 2 * dynamic["retry_timeout"] <= dynamic["ttl"]


def test_page_has_the_values_of_the_file(dynamic: dict[str, Any]) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, re.MULTILINE))
    for name in ("synchronous_mode", "synchronous_mode_strict", "primary_start_timeout",
                 "failsafe_mode"):  # fmt: skip
        assert rows[name] == str(dynamic[name]).lower()
    times = ", ".join(str(dynamic[name]) for name in ("ttl", "loop_wait", "retry_timeout"))
    assert f"| `ttl`, `loop_wait`, `retry_timeout` | {times} |" in PAGE
    for name in ("max_standby_streaming_delay", "hot_standby_feedback"):
        assert f"`{name}: {dynamic['postgresql']['parameters'][name]}`" in PAGE
