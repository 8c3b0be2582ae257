"""What must hold of the two distributions as a whole."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import sagastore

ROOT = Path(__file__).parents[2]
PACKAGES = {"client": "sagastore", "server": "sagastore_server"}
MAX_LINES = 500
# Packages that import nothing but the standard library, each other's parts, and these.
PURE = {
    "server/sagastore_server/storage": {"sagastore_server", "sagastore"},
    "server/sagastore_server/search": {"sagastore_server", "Stemmer", "regex", "unicodedata2"},
    "client/sagastore/legacy": {"sagastore"},
    "client/sagastore/receipt": {"sagastore"},
    "client/sagastore/canonical_json": {"sagastore"},
    "client/sagastore/json_numbers": set(),
    "client/sagastore/message_rules": {"sagastore"},
    "client/sagastore": {"sagastore", "google", "grpc"},
}
PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; .+)?")


def _project(distribution: str) -> dict[str, Any]:
    text = (ROOT / distribution / "pyproject.toml").read_text(encoding="utf-8")
    project: dict[str, Any] = tomllib.loads(text)["project"]
    return project


def _sources(distribution: str) -> list[str]:
    """Every file of the package that belongs into its wheel."""
    base = ROOT / distribution
    files = (path for path in (base / PACKAGES[distribution]).rglob("*") if path.is_file())
    return sorted(
        path.relative_to(base).as_posix()
        for path in files
        if "__pycache__" not in path.parts and path.suffix in {".py", ".pyi", ".sql", ".typed"}
    )


@pytest.mark.parametrize("distribution", PACKAGES)
def test_wheel_holds_every_source_file(distribution: str, tmp_path: Path) -> None:
    """SQL and py.typed are data to a build tool, and are lost without a word."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT / distribution,
        check=True,
        capture_output=True,
        timeout=200,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    expected = _sources(distribution)
    assert f"{PACKAGES[distribution]}/py.typed" in expected
    assert [name for name in expected if name not in packed] == []


def test_server_ships_sql() -> None:
    assert any(name.endswith(".sql") for name in _sources("server"))


def test_server_pins_the_client_of_its_own_version() -> None:
    client, server = _project("client"), _project("server")
    assert client["version"] == server["version"]
    assert f"sagastore=={client['version']}" in server["dependencies"]


@pytest.mark.parametrize("distribution", PACKAGES)
def test_no_source_file_is_too_long(distribution: str) -> None:
    files = [name for name in _sources(distribution) if name.endswith((".py", ".sql"))]
    lengths = {
        name: len((ROOT / distribution / name).read_text(encoding="utf-8").splitlines())
        for name in files
        if not name.startswith("sagastore/v1/")
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def _imported(source: Path) -> set[str]:
    """The top-level packages that a module imports, wherever it does so."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def _modules(package: str) -> list[Path]:
    """The modules of a package or of a single-file module; not the command line's."""
    base = ROOT / package
    found = [*base.rglob("*.py"), *base.parent.glob(f"{base.name}.py")]
    command_line = {ROOT / "client/sagastore/cli", ROOT / "client/sagastore/commandline"}
    return [path for path in found if command_line.isdisjoint(path.parents)]


@pytest.mark.parametrize("package", PURE)
def test_pure_packages_import_the_standard_library_only(package: str) -> None:
    """The import rule can only list what is forbidden; this is what is allowed."""
    allowed = PURE[package] | sys.stdlib_module_names
    foreign = {
        path.relative_to(ROOT).as_posix(): _imported(path) - allowed for path in _modules(package)
    }
    assert {name: packages for name, packages in foreign.items() if packages} == {}


def _library_names(source: Path) -> set[str]:
    """The modules and names of the client library that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.startswith("sagastore.")}


def test_integrations_import_public_names_only() -> None:
    public = {f"sagastore.{name}" for name in sagastore.__all__}
    private = {
        f"{path.name}: {name}"
        for path in _modules("client/sagastore/integrations")
        for name in _library_names(path) - public
        if not name.startswith("sagastore.integrations.")
    }
    assert private == set()


@pytest.mark.parametrize(
    "name",
    [
        "constraints.txt",
        "constraints-proto.txt",
        "constraints-audit.txt",
        "constraints-cluster.txt",
    ],
)
def test_pins_are_plain_versions(name: str) -> None:
    """No addresses, no hashes: the pins hold wherever the packages come from."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert lines
    assert [line for line in lines if not PIN.fullmatch(line)] == []
