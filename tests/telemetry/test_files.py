"""The dashboard, the alerts and the documentation match the metrics of a real server."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sagastore import AsyncClient, Message, Phase
from tests.security.pki import Pki
from tests.support.migration_control import go_to, until_ready
from tests.support.postgres import fresh_schema
from tests.support.server_process import STARTUP_SECONDS, ServerProcess, clean_environment
from tests.support.waiting import eventually
from tests.telemetry.ops import get, names, ops_of

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "sagastore.json"
METRIC = re.compile(r"\b(?:sagastore|grpc_server|process|python)_[a-z0-9_]+")
PARTS = re.compile(r"_(bucket|sum|count)$")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


@pytest.fixture(scope="module")
def exposition(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the metrics of a server with TLS during a migration, after a verification."""
    return asyncio.run(_exposition(tmp_path_factory.mktemp("migrating")))


async def _exposition(folder: Path) -> str:
    pki = Pki(folder / "pki")
    cert, key = pki.server()
    async with fresh_schema() as dsn:
        server = ServerProcess(
            folder / "messages.db",
            env={
                "SAGASTORE_OPS_LISTEN": "127.0.0.1:0",
                "SAGASTORE_POSTGRES": dsn,
                "SAGASTORE_POSTGRES_REPLICAS": "postgresql://127.0.0.1:1/none",
                "SAGASTORE_TLS_CERT": str(cert),
                "SAGASTORE_TLS_KEY": str(key),
            },
        )
        with closing(server):
            ops = ops_of(server.start())
            _back_up(server)
            async with AsyncClient(server.address, tls=pki.client()) as client:
                await client.save(Message("a", "user", "hello"))
                await go_to(client, Phase.BACKFILL)
                await until_ready(client)
            eventually(lambda: "sagastore_migration_verification_compared_rows" in names(ops))
            eventually(lambda: b'sagastore_messages{store="postgresql"} 1.0' in metrics(ops))
            return metrics(ops).decode()


def _back_up(server: ServerProcess) -> None:
    """Make a scheduled backup whose second attempt fails."""
    folder = server.sqlite.parent / "backups"
    options = (
        "backup",
        str(folder),
        "--every",
        "1s",
        "--keep",
        "2",
        "--sqlite",
        str(server.sqlite),
    )
    with subprocess.Popen(
        [sys.executable, "-m", "sagastore_server", *options],
        env=clean_environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as schedule:
        assert schedule.stdout is not None
        assert schedule.stderr is not None
        assert "verified" in schedule.stdout.readline()
        shutil.rmtree(folder)
        assert "No such file" in schedule.stderr.readline()
        schedule.terminate()
        assert schedule.wait(STARTUP_SECONDS) == 0


def metrics(ops: str) -> bytes:
    return get(ops, "/metrics").body


def samples(exposition: str) -> set[str]:
    families = text_string_to_metric_families(exposition)
    return {sample.name for family in families for sample in family.samples}


def used(expression: str) -> set[str]:
    return set(METRIC.findall(expression))


def dashboard_expressions() -> list[str]:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = [target["expr"] for panel in document["panels"] for target in panel.get("targets", [])]
    found += [one["expr"] for one in document["annotations"]["list"]]
    found += [one["definition"] for one in document["templating"]["list"] if "definition" in one]
    return found


def alert_expressions() -> list[str]:
    text = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8")
    # Without the texts, of which some look like metrics.
    return [re.sub(r"(?m)^ +(summary|description|runbook_url): .*$", "", text)]


def test_used_metrics_exist(exposition: str) -> None:
    exported_names = samples(exposition)
    for expression in (*dashboard_expressions(), *alert_expressions()):
        assert used(expression) - exported_names == set(), expression
    assert len(used(" ".join(dashboard_expressions()))) > 40


def test_documented_metrics_are_the_exported_ones(exposition: str) -> None:
    text = (ROOT / "docs" / "reference" / "observability.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in METRIC.findall(row)}
    exported = {PARTS.sub("", name) for name in samples(exposition)}
    assert documented == exported


def test_metric_names_follow_the_conventions(exposition: str) -> None:
    for family in text_string_to_metric_families(exposition):
        assert family.documentation, family.name
        if family.name.startswith("sagastore_"):
            total = any(sample.name.endswith("_total") for sample in family.samples)
            assert total == (family.type == "counter"), family.name
            assert not re.search(r"(milli|micro|nano|kilo|mega|minutes|hours)", family.name)


def test_dashboard_shows_every_metric(exposition: str) -> None:
    ours = {PARTS.sub("", name) for name in samples(exposition) if name.startswith("sagastore_")}
    shown = {PARTS.sub("", name) for name in used(" ".join(dashboard_expressions()))}
    assert ours - shown == set()


def test_dashboard_is_valid() -> None:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = document["panels"]
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == ["Current state", "Traffic", "Latency", "Stores", "Migration", "Saturation"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))


@needs_promtool
@pytest.mark.parametrize(
    "check",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
)
def test_prometheus_files_pass_promtool(check: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *check], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_have_tests() -> None:
    alerts = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8")
    tests = (PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8")
    for name in re.findall(r"- alert: (\w+)", alerts):
        assert name in tests


@needs_promtool
def test_metrics_pass_the_lint_of_promtool(exposition: str) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=exposition,
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if line.startswith("sagastore")]
    assert complaints == []
