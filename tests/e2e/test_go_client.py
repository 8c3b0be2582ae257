"""A Go client, whose code plain protoc generates from protos/.

Not part of every run, because the first build compiles Go's own library and gRPC:
`make test-go`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
PLUGINS = (
    "google.golang.org/protobuf/cmd/protoc-gen-go",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc",
)
BUILD_SECONDS = 540


def protoc() -> list[str]:
    """Return the protoc command: an installed one, or the one of `make proto`."""
    if shutil.which("protoc"):
        return ["protoc"]
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    python = ROOT / os.environ.get("VENV_PROTO", ".venv-proto") / scripts / "python"
    if not python.exists():
        pytest.skip("needs protoc, or the environment that `make proto` makes")
    return [str(python), "-m", "grpc_tools.protoc"]


@pytest.mark.go
@pytest.mark.timeout(BUILD_SECONDS + 60)
def test_go_client_calls_the_server(tmp_path: Path, running_server: ServerProcess) -> None:
    if shutil.which("go") is None:
        pytest.skip("needs Go")
    client = tmp_path / "client"
    shutil.copytree(Path(__file__).with_name("go_client"), client)

    def run(*command: str) -> str:
        result = subprocess.run(
            command,
            cwd=client,
            env=os.environ | {"PATH": f"{client}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=BUILD_SECONDS,
        )
        return result.stdout

    download = subprocess.run(
        ["go", "mod", "download"], cwd=client, capture_output=True, text=True, check=False
    )
    if download.returncode and "SECURITY ERROR" not in download.stderr:
        pytest.skip(f"needs the modules of go.mod: {download.stderr.strip()}")
    # A folder as the output, because there are several commands.
    run("go", "build", "-o", f"{client}{os.sep}", *PLUGINS)
    protos = sorted(str(path) for path in (ROOT / "protos").rglob("*.proto"))
    run(*protoc(), f"-I{ROOT / 'protos'}", "--go_out=.", "--go-grpc_out=.", *protos)
    run("go", "build", "-o", f"{client}{os.sep}", ".")
    assert run(str(client / "client"), running_server.address) == "done\n"
