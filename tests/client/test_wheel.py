"""The wheel in an empty environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.server_process import ServerProcess

ROOT = Path(__file__).parents[2]

USER = """
from datetime import UTC, datetime

from sagastore import AsyncClient, BulkResult, Client, Message, SaveResult, SearchResult


def blocking(client: Client) -> SaveResult:
    found: list[SearchResult] = list(client.search("fox", start=datetime.now(UTC)))
    result: BulkResult = client.bulk_save(match.message for match in found)
    print(result.total, client.migration.get().phase.label)
    return client.save(Message("openai", "user", "hello", tags=["a"]))


async def asynchronous(client: AsyncClient) -> None:
    async for message in client.export():
        reveal_type(message.timestamp)
    async for page in client.list("s").pages():
        reveal_type(page.items)
    client.get(5)  # wrong
"""


def _run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "MYPY", "VIRTUAL"))}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    done = _run(
        *(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder),
        cwd=ROOT / "client",
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new environment; return its interpreter."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(home, with_pip=False, symlinks=sys.platform != "win32")
    interpreter = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    done = _run(
        *(sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet"),
        *("--disable-pip-version-check", "-c", ROOT / "constraints.txt", wheel),
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    return interpreter


def _run_program(python: Path, program: str, *arguments: str) -> Any:
    """Run a program that prints JSON, with warnings as errors."""
    done = _run(python, "-I", "-W", "error", "-c", program, *arguments, cwd=python.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_wheel_contains_protocol_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "sagastore/py.typed" in names
    for stem in ("message", "storage", "migration"):
        for ending in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"):
            assert f"sagastore/v1/{stem}{ending}" in names
    unexpected = {
        name for name in names if not name.startswith(("sagastore/", "sagastore-0", "sagastore-1"))
    }
    assert unexpected == set()
    assert not [name for name in names if "test" in name]


def test_wheel_installs_only_its_dependencies(python: Path) -> None:
    program = """
import importlib.metadata as m, json
print(json.dumps(sorted(d.metadata["Name"].lower() for d in m.distributions())))
"""
    installed = set(_run_program(python, program))
    assert installed <= {
        "sagastore",
        "grpcio",
        "protobuf",
        "typing_extensions",
        "typing-extensions",
    }


def test_wheel_imports_only_its_dependencies(python: Path) -> None:
    program = """
import json, sys
import sagastore
for name in sagastore.__all__:
    getattr(sagastore, name)
sagastore.Client("127.0.0.1:1").close()
places = {n.partition(".")[0]: getattr(m, "__file__", None) for n, m in sys.modules.items()}
print(json.dumps([n for n, f in places.items() if f and "site-packages" in f]))
"""
    # "google" itself is a namespace, without a file.
    assert set(_run_program(python, program)) <= {
        "sagastore",
        "grpc",
        "google",
        "typing_extensions",
    }


def test_wheel_types_are_visible_to_type_checkers(python: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n", encoding="utf-8")
    done = _run(
        *(sys.executable, "-m", "mypy", "--python-executable", python),
        *("--config-file", "mypy.ini", "--no-error-summary", "user.py"),
        cwd=tmp_path,
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        'user.py:16: note: Revealed type is "datetime.datetime | None"',
        'user.py:18: note: Revealed type is "tuple[sagastore._model.Message, ...]"',
    ]
    # Everything else it finds is about the line that is wrong.
    assert all(line.startswith("user.py:19: ") for line in lines[2:])
    assert any('incompatible type "int"; expected "str"' in line for line in lines[2:])


def test_installed_wheel_saves_and_gets(python: Path, shared_server: ServerProcess) -> None:
    program = """
import asyncio, json, sys
from sagastore import AsyncClient, Client, Message

async def read(id):
    async with AsyncClient(sys.argv[1]) as client:
        return (await client.get(id)).content

with Client(sys.argv[1]) as client:
    saved = client.save(Message("openai", "user", "from a wheel", metadata={"n": 1}))
    print(json.dumps([client.get(saved.id).metadata, asyncio.run(read(saved.id))]))
"""
    assert _run_program(python, program, shared_server.address) == [{"n": 1}, "from a wheel"]
