"""TLS, client certificates and tokens, over a real socket.

The server of this version has neither; a scripted one stands for the proxy in front of it.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from sagastore import TLS, AsyncClient, Client, RetryPolicy, UnavailableError
from sagastore.v1 import message_pb2, storage_pb2, storage_pb2_grpc
from tests.client.failing.scripted import Script, answer

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates")

ONCE = RetryPolicy(max_attempts=1)
NAME = "saga.example"


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def _certificate(folder: Path, name: str, *options: str) -> None:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = ("-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}")
    _openssl(folder, "req", "-x509", *curve, *files, *options)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an authority, certificates of a server and of a client, and a foreign authority."""
    folder = tmp_path_factory.mktemp("pki")
    _certificate(folder, "ca")
    _certificate(folder, "foreign")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key")
    _certificate(folder, "server", *signed, "-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1")
    _certificate(folder, "client", *signed)
    return folder


@pytest.fixture
async def script(pki: Path) -> AsyncIterator[Script]:
    """Serve over TLS, for clients with a certificate only."""
    script = Script()
    found = message_pb2.Message(id="x", content="over TLS")
    script.play("Get", answer(storage_pb2.GetResponse(message=found)))
    server = grpc.aio.server()
    storage_pb2_grpc.add_StorageServiceServicer_to_server(script, server)
    credentials = grpc.ssl_server_credentials(
        [((pki / "server.key").read_bytes(), (pki / "server.pem").read_bytes())],
        root_certificates=(pki / "ca.pem").read_bytes(),
        require_client_auth=True,
    )
    script.address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    await server.start()
    yield script
    await server.stop(None)


def full(pki: Path) -> TLS:
    return TLS(ca=pki / "ca.pem", cert=pki / "client.pem", key=pki / "client.key")


async def test_certificates_of_both_sides_and_a_token(script: Script, pki: Path) -> None:
    async with AsyncClient(script.address, tls=full(pki), token="secret") as client:
        assert (await client.get("x")).content == "over TLS"
    assert script.metadata[0]["authorization"] == "Bearer secret"
    with Client(script.address, tls=full(pki), token=lambda: "fresh") as blocking:
        assert (await asyncio.to_thread(blocking.get, "x")).content == "over TLS"
    assert script.metadata[1]["authorization"] == "Bearer fresh"


async def test_certificates_as_paths_bytes_and_text(script: Script, pki: Path) -> None:
    files = [pki / name for name in ("ca.pem", "client.pem", "client.key")]
    for ca, cert, key in (
        [str(file) for file in files],
        [file.read_bytes() for file in files],
        [file.read_text() for file in files],
    ):
        tls = TLS(ca=ca, cert=cert, key=key, server_name=NAME)
        async with AsyncClient(script.address, tls=tls) as client:
            assert (await client.get("x")).content == "over TLS"


async def test_a_server_that_is_not_trusted(script: Script, pki: Path) -> None:
    foreign = TLS(ca=pki / "foreign.pem", cert=pki / "client.pem", key=pki / "client.key")
    async with AsyncClient(script.address, tls=foreign, retry=ONCE) as client:
        with pytest.raises(UnavailableError, match="certificate is not trusted; see TLS"):
            await client.get("x")
    assert script.requests == []


async def test_a_server_of_another_name(script: Script, pki: Path) -> None:
    files = full(pki)
    other = TLS(ca=files.ca, cert=files.cert, key=files.key, server_name="other.example")
    async with AsyncClient(script.address, tls=other, retry=ONCE) as client:
        with pytest.raises(UnavailableError, match=script.address):
            await client.get("x")
    assert script.requests == []


async def test_without_a_certificate_of_its_own(script: Script, pki: Path) -> None:
    tls = TLS(ca=pki / "ca.pem")
    async with AsyncClient(script.address, tls=tls, token="secret", retry=ONCE) as client:
        with pytest.raises(UnavailableError, match=script.address) as caught:
            await client.get("x")
    assert "secret" not in str(caught.value)
    assert script.requests == []


async def test_plain_text_to_a_server_with_tls(script: Script) -> None:
    async with AsyncClient(script.address, token="secret", retry=ONCE) as client:
        with pytest.raises(UnavailableError, match="does the server expect TLS") as caught:
            await client.get("x")
    assert "secret" not in str(caught.value)
    assert script.requests == []
