"""What the Helm chart renders (`make test-helm`; skipped without helm)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sagastore_server.config.settings import Settings, load
from scripts.write_chart import CHART
from tests.deploy.test_chart import ROOT, read_yaml

BUILT = ROOT / "build" / "tools" / "bin" / "helm"
VALIDATE = ROOT / ".venv-cluster" / "bin" / "kubernetes-validate"
KUBERNETES = "1.34"
MODES = ("postgresql", "migration", "sqlite")
DATABASE = {"postgres": {"existingSecret": "database"}}
OPEN = {**DATABASE, "allowInsecure": True}
SECURE = {
    **DATABASE,
    "tls": {"existingSecret": "tls", "clientCertificates": True},
    "access": {"existingSecret": "access"},
    "forwarding": {"tlsSecret": "forwarding"},
}
FULL = {
    **SECURE,
    "settings": {"drain_seconds": 12.5, "log_calls": True, "max_request_bytes": 67108864},
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "extraEnv": [{"name": "PGPASSFILE", "value": "/etc/pg/pass"}],
    "extraVolumes": [{"name": "pg", "secret": {"secretName": "pg"}}],
    "extraVolumeMounts": [{"name": "pg", "mountPath": "/etc/pg"}],
    "nodeSelector": {"disk": "ssd"},
    "podLabels": {"team": "storage"},
}

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def helm() -> str:
    found = str(BUILT) if BUILT.exists() else shutil.which("helm")
    if found is None:
        pytest.skip("needs helm, which `make helm` builds with Go")
    return found


def run(
    helm: str, command: str, folder: Path, values: Manifest
) -> subprocess.CompletedProcess[str]:
    file = folder / "values.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    name = ["saga"] if command == "template" else []
    version = ["--kube-version", f"{KUBERNETES}.0"]
    return subprocess.run(
        [helm, command, *name, str(CHART), *version, "--values", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def rendered(helm: str, folder: Path, values: Manifest) -> list[Manifest]:
    done = run(helm, "template", folder, values)
    assert done.returncode == 0, done.stderr
    return [document for text in done.stdout.split("\n---\n") if (document := read_yaml(text))]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [one for one in manifests if one["kind"] == kind]


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    for kind in ("Deployment", "StatefulSet"):
        yield from (one["spec"]["template"] for one in of_kind(manifests, kind))


@pytest.mark.parametrize("mode", MODES)
def test_chart_is_accepted(helm: str, tmp_path: Path, mode: str) -> None:
    """By `helm lint`, and by the schemas of Kubernetes, without unknown fields."""
    values = {**FULL, "mode": mode}
    done = run(helm, "lint", tmp_path, values)
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout
    manifests = rendered(helm, tmp_path, values)
    if not VALIDATE.exists():
        pytest.skip("needs the schemas of Kubernetes, which `make test-helm` installs")
    # The kinds of the Prometheus operator are not part of Kubernetes.
    own = [one for one in manifests if not one["apiVersion"].startswith("monitoring.")]
    files = [tmp_path / f"{number}.json" for number in range(len(own))]
    for file, manifest in zip(files, own, strict=True):
        file.write_text(json.dumps(manifest), encoding="utf-8")
    command = [str(VALIDATE), "--strict", "--kubernetes-version", KUBERNETES, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed for ") == len(own)


@pytest.mark.parametrize("mode", MODES)
def test_settings_files_are_accepted_by_the_server(
    helm: str, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGASTORE_POSTGRES", "postgresql://me@db1,db2/saga")
    manifests = rendered(helm, tmp_path, {**FULL, "mode": mode})
    (config,) = of_kind(manifests, "ConfigMap")
    used = {pod["spec"]["containers"][0]["args"][-1] for pod in pods(manifests)}
    assert used == {f"/etc/sagastore/settings/{name}" for name in config["data"]}
    for name, text in config["data"].items():
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        settings = load(file)
        assert settings.log_calls
        assert settings.drain_seconds == 12.5
        assert settings.max_request_bytes == 67108864
        assert settings.names_sqlite == (name == "holder.toml")
        # Two names for one file would be a mistake of the chart.
        mounts = {
            mount["mountPath"]
            for pod in pods(manifests)
            for mount in pod["spec"]["containers"][0]["volumeMounts"]
        }
        for path in _files(settings):
            assert str(path.parent) in mounts, path


def _files(settings: Settings) -> list[Path]:
    values = [getattr(settings, name) for name in settings.model_fields_set]
    return [value for value in values if isinstance(value, Path)]


def test_kinds_of_each_mode(helm: str, tmp_path: Path) -> None:
    for mode, expected in {
        "postgresql": {"Deployment": 1, "StatefulSet": 0, "PodDisruptionBudget": 1, "Service": 2},
        "migration": {"Deployment": 1, "StatefulSet": 1, "PodDisruptionBudget": 1, "Service": 3},
        "sqlite": {"Deployment": 0, "StatefulSet": 1, "PodDisruptionBudget": 0, "Service": 3},
    }.items():
        manifests = rendered(helm, tmp_path, {**OPEN, "mode": mode})
        assert {kind: len(of_kind(manifests, kind)) for kind in expected} == expected


def test_pods_are_restricted(helm: str, tmp_path: Path) -> None:
    """As the systemd unit: another user, no capabilities, no writes outside of their volumes."""
    found = list(pods(rendered(helm, tmp_path, {**SECURE, "mode": "migration"})))
    assert len(found) == 2
    for pod in found:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        assert "password" not in json.dumps(pod).lower()


def test_pod_has_time_to_drain(helm: str, tmp_path: Path) -> None:
    for seconds, expected in ((None, 65), (12.5, 48), (0, 35)):
        settings = {} if seconds is None else {"drain_seconds": seconds}
        (pod,) = pods(rendered(helm, tmp_path, {**OPEN, "settings": settings}))
        assert pod["spec"]["terminationGracePeriodSeconds"] == expected


def test_services_select_the_pods(helm: str, tmp_path: Path) -> None:
    """Calls reach every pod in each mode; the name of the holder reaches the holder only."""
    manifests = rendered(helm, tmp_path, {**OPEN, "mode": "migration"})
    labels = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in pods(manifests)
    }
    assert labels.keys() == {"server", "holder"}
    for service in of_kind(manifests, "Service"):
        selector = service["spec"]["selector"].items()
        reached = {
            name for name, pod in labels.items() if selector <= pod["metadata"]["labels"].items()
        }
        own = service["metadata"]["name"].endswith("-holder")
        assert reached == ({"holder"} if own else {"server", "holder"})
    (budget,) = of_kind(manifests, "PodDisruptionBudget")
    assert budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == "server"


def test_alerts_are_those_of_prometheus(helm: str, tmp_path: Path) -> None:
    (rule,) = of_kind(rendered(helm, tmp_path, {**FULL}), "PrometheusRule")
    source = ROOT / "deploy" / "prometheus" / "alerts.yml"
    assert rule["spec"] == read_yaml(source.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (DATABASE, "set tls.existingSecret"),
        ({"allowInsecure": True}, "needs postgres.existingSecret"),
        ({**DATABASE, "tls": {"existingSecret": "tls"}}, "access.existingSecret"),
        ({**SECURE, "probes": {"grpc": True}}, "the gRPC probe does not use TLS"),
        ({**SECURE, "mode": "migration", "forwarding": {"tlsSecret": ""}}, "forwarding.tlsSecret"),
        ({**OPEN, "settings": {"max_callz": 3}}, "max_callz"),
    ],
    ids=["insecure", "no-database", "no-access", "grpc-probe", "forwarding", "setting"],
)
def test_wrong_values_are_refused(helm: str, tmp_path: Path, values: Manifest, reason: str) -> None:
    done = run(helm, "template", tmp_path, values)
    assert done.returncode != 0
    assert reason in done.stderr


def test_change_of_a_setting_restarts_the_pods(helm: str, tmp_path: Path) -> None:
    def annotation(**settings: object) -> str:
        (pod,) = pods(rendered(helm, tmp_path, {**OPEN, "settings": settings}))
        return str(pod["metadata"]["annotations"]["checksum/settings"])

    assert annotation() == annotation()
    assert annotation() != annotation(log_calls=True)
