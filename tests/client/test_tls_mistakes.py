"""Each mistake with TLS or the port has its own line, in the library and in the command.

Real servers, real sockets. The messages name what to change, so they are compared in full.
"""

from __future__ import annotations

import asyncio
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from sagastore import (
    TLS,
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidArgumentError,
    RetryPolicy,
    UnavailableError,
)
from sagastore._der import validity
from sagastore.commandline.exit_status import ExitStatus
from tests.cli.command import Sagastore
from tests.security.pki import CLIENT, Pki, chain, environment, key
from tests.support.server_process import ServerProcess

ONCE = RetryPolicy(max_attempts=1)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """An HTTP/1 server that writes no log."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


class Ports(NamedTuple):
    """Addresses that a client may use by mistake."""

    plain: str
    mutual: str
    tls: str
    ops: str
    http: str
    https: str
    ssh: str
    closing: str
    silent: str
    nothing: str


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def accepting(stack: ExitStack, answer: bytes | None) -> str:
    """Accept connections; send the answer, or close each at once, or (None) do nothing."""
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def serve() -> None:
        with ExitStack() as kept:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                if answer:
                    connection.sendall(answer)
                    kept.enter_context(connection)
                else:
                    connection.close()

    if answer is not None:
        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join)
        stack.callback(listening.shutdown, socket.SHUT_RDWR)
    return f"127.0.0.1:{listening.getsockname()[1]}"


def web(stack: ExitStack, files: tuple[Path, Path] | None = None) -> str:
    """Serve HTTP/1, over TLS if there are files."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if files is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return f"127.0.0.1:{server.server_address[1]}"


@pytest.fixture(scope="module")
def ports(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    folder = tmp_path_factory.mktemp("servers")
    files = pki.server(pki.issue("localhost", "127.0.0.1"))
    with ExitStack() as stack:
        bound = stack.enter_context(socket.socket())
        bound.bind(("127.0.0.1", 0))
        plain = ServerProcess(folder / "a.db", env={"SAGASTORE_OPS_LISTEN": "127.0.0.1:0"})
        mutual = ServerProcess(folder / "b.db", env=environment(files, pki.ca))
        secured = ServerProcess(folder / "c.db", "--allow-insecure", env=environment(files))
        for server in (plain, mutual, secured):
            stack.callback(server.close)
            server.spawn()
        for server in (plain, mutual, secured):
            server.address = server.wait_for_event("serving")["address"]
        yield Ports(
            plain.address,
            mutual.address,
            secured.address,
            plain.wait_for_event("serving")["ops"],
            web(stack),
            web(stack, files),
            accepting(stack, b"SSH-2.0-OpenSSH_9.6\r\n"),
            accepting(stack, b""),
            accepting(stack, None),
            f"127.0.0.1:{bound.getsockname()[1]}",
        )


NO_TLS = "the server does not use TLS on this port; leave out tls, or check the port"
NO_GRPC = "the server on this port does not use gRPC, so it is not SagaStore; check the port"
CLOSED = "the server closed the connection"
HUNG = "check the port, and that the server is not hung"
SHAKEN = f"{CLOSED} after the TLS handshake"

MISTAKES = [
    ("mutual", "none", f"{CLOSED}; does the server require TLS (tls=True)?"),
    ("tls", "none", f"{CLOSED}; does the server require TLS (tls=True)?"),
    ("mutual", "ca", f"{SHAKEN}; does it require a client certificate (TLS(cert=..., key=...))?"),
    (
        "mutual",
        "foreign",
        f"{SHAKEN}; does it trust the authority of the client certificate (tls_client_ca)?",
    ),
    ("tls", "other ca", "the server's certificate is not trusted; see TLS(ca=...)"),
    ("tls", "default", "the server's certificate is not trusted; see TLS(ca=...)"),
    (
        "tls",
        "other name",
        "the server's certificate is for another name; see TLS(server_name=...)",
    ),
    ("plain", "ca", NO_TLS),
    ("ops", "ca", NO_TLS),
    ("http", "ca", NO_TLS),
    ("ssh", "ca", NO_TLS),
    ("ops", "none", "an HTTP/1 server answers on this port, not SagaStore; check the port"),
    ("http", "none", NO_GRPC),  # Answers with the body only, as HTTP/0.9.
    ("ssh", "none", NO_GRPC),
    (
        "https",
        "ca",
        "the server on this port does not support HTTP/2, so it is not SagaStore; check the port",
    ),
    ("closing", "none", f"{CLOSED}; does the server require TLS (tls=True)?"),
    ("closing", "ca", f"{CLOSED} during the TLS handshake; check the port"),
    ("nothing", "none", "connection refused; is the server running?"),
    ("nothing", "ca", "connection refused; is the server running?"),
    ("silent", "none", f"the port accepts connections but does not answer; {HUNG}"),
    (
        "silent",
        "ca",
        f"the port accepts connections but does not answer the TLS handshake; {HUNG}",
    ),
]


def tls_of(name: str, pki: Pki, foreign: Pki) -> TLS | bool:
    choices: dict[str, TLS | bool] = {
        "none": False,
        "default": True,
        "ca": TLS(ca=pki.ca),
        "other ca": TLS(ca=foreign.ca),
        "other name": TLS(ca=pki.ca, server_name="other.example"),
        "foreign": replace(foreign.client(), ca=pki.ca),
    }
    return choices[name]


async def test_each_wrong_connection_has_its_line(ports: Ports, pki: Pki) -> None:
    foreign = Pki(pki.folder / "foreign")

    async def refused(port: str, name: str, line: str) -> None:
        address, tls = getattr(ports, port), tls_of(name, pki, foreign)
        async with AsyncClient(address, tls=tls, retry=ONCE, timeout=60) as client:
            with pytest.raises(UnavailableError) as caught:
                await client.get("x")
        assert str(caught.value) == f"cannot reach {address}: {line}", (port, name)
        assert caught.value.unsent

    await asyncio.gather(*(refused(*mistake) for mistake in MISTAKES))


async def test_mistakes_that_last_are_not_retried(ports: Ports, pki: Pki) -> None:
    for port, tls in (("tls", True), ("plain", True), ("ops", False), ("https", TLS(ca=pki.ca))):
        async with AsyncClient(getattr(ports, port), tls=tls, timeout=600) as client:
            with pytest.raises(UnavailableError) as caught:
                await client.get("x")
        assert caught.value.misconfigured
        assert "gave up" not in str(caught.value)


async def test_silent_port_at_the_deadline(ports: Ports) -> None:
    async with AsyncClient(ports.silent, timeout=0.3) as client:
        with pytest.raises(DeadlineExceededError) as caught:
            await client.get("x")
    line = f"Get timed out after 0.3 s: no connection to {ports.silent} yet"
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("begins", "ends", "line"),
    [
        (-9, -2, "the server's certificate has expired; renew it"),
        (2, 9, "the server's certificate is not valid yet; check the clocks"),
    ],
)
async def test_validity_of_the_server_certificate_is_told(
    pki: Pki, begins: int, ends: int, line: str
) -> None:
    # A server of SagaStore would not start with this certificate.
    now = datetime.now(UTC)
    leaf = pki.issue(
        "127.0.0.1",
        not_before=now + timedelta(days=begins),
        not_after=now + timedelta(days=ends),
    )
    server = grpc.aio.server()
    pair = grpc.ssl_server_credentials([(key(leaf), chain(leaf))])
    address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', pair)}"
    await server.start()
    async with AsyncClient(address, tls=TLS(ca=pki.ca)) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.get("x")
    await server.stop(None)
    assert str(caught.value) == f"cannot reach {address}: {line}"


def write_files(pki: Pki) -> Path:
    """Write files with mistakes; return their folder."""
    leaf, other = pki.issue(CLIENT), pki.issue(CLIENT)
    private = load_pem_private_key(key(leaf), None)
    encrypted = private.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    legacy = private.private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret")
    )
    der = x509.load_pem_x509_certificate(chain(leaf)).public_bytes(Encoding.DER)
    lines = chain(leaf).splitlines()
    for name, data in {
        "client.pem": chain(leaf),
        "client.key": key(leaf),
        "both.pem": key(leaf) + chain(leaf),
        "other.key": key(other),
        "encrypted.key": encrypted,
        "legacy.key": legacy,
        "der.pem": der,
        "text.pem": b"no certificate",
        "empty.pem": b"",
        "torn.pem": b"\n".join(lines[:5]),
        "changed.pem": b"\n".join([lines[0], *lines[3:]]),
        "torn.key": b"\n".join([*key(leaf).splitlines()[:2], b"-----END PRIVATE KEY-----"]),
    }.items():
        pki.write(name, data)
    return pki.folder


NOT_PEM = "is not PEM: expected text with BEGIN CERTIFICATE; convert it to PEM"
NO_CERTIFICATE = "contains no certificate (BEGIN CERTIFICATE)"
TORN = "contains an invalid certificate; check that it is complete"
ENCRYPTED = "is encrypted; use an unencrypted key, which openssl pkey -in KEY -out NEW makes"
OTHER = "does not match the first certificate in {0}/client.pem; give the key of that certificate"

UNREADABLE = [
    ("ca", "none.pem", "cannot read {0}/none.pem: No such file or directory"),
    ("ca", ".", "cannot read {0}: Is a directory"),
    ("cert", "none.pem", "cannot read {0}/none.pem: No such file or directory"),
    ("key", "none.key", "cannot read {0}/none.key: No such file or directory"),
]
INVALID = [
    ("ca", "text.pem", NOT_PEM),
    ("ca", "der.pem", NOT_PEM),
    ("ca", "empty.pem", NOT_PEM),
    ("ca", "client.key", NO_CERTIFICATE),
    ("ca", "torn.pem", TORN),
    ("ca", "changed.pem", TORN),
    ("cert", "client.key", NO_CERTIFICATE),
    ("cert", "der.pem", NOT_PEM),
    ("cert", "torn.pem", TORN),
    ("key", "client.pem", "contains no private key in PEM (BEGIN PRIVATE KEY)"),
    ("key", "other.key", OTHER),
    ("key", "encrypted.key", ENCRYPTED),
    ("key", "legacy.key", ENCRYPTED),
    ("key", "torn.key", "contains an invalid private key; check that it is complete"),
]


def settings_with(folder: Path, argument: str, name: str) -> dict[str, Any]:
    """Return files for `TLS`, one of which is wrong."""
    right = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
    return {each: folder / file for each, file in (right | {argument: name}).items()}


@pytest.mark.parametrize(
    ("argument", "name", "line"),
    [*UNREADABLE, *[(argument, name, f"{{0}}/{name} {line}") for argument, name, line in INVALID]],
)
def test_wrong_file_is_named(pki: Pki, argument: str, name: str, line: str) -> None:
    folder = write_files(pki)
    for client in (AsyncClient, Client):
        with pytest.raises(InvalidArgumentError) as caught:
            client("127.0.0.1:1", tls=TLS(**settings_with(folder, argument, name)))
        assert str(caught.value) == f"{argument}: {line.format(folder)}"


@pytest.mark.parametrize(("argument", "name", "line"), INVALID)
def test_wrong_data_is_reported_without_it(pki: Pki, argument: str, name: str, line: str) -> None:
    paths = settings_with(write_files(pki), argument, name)
    data: dict[str, Any] = {each: path.read_bytes() for each, path in paths.items()}
    with pytest.raises(InvalidArgumentError) as caught:
        AsyncClient("127.0.0.1:1", tls=TLS(**data))
    if line is OTHER:
        line = "does not match the certificate; give the key of that certificate"
    assert str(caught.value) == f"{argument}: {line}"


async def test_combined_file_and_data_are_accepted(ports: Ports, pki: Pki) -> None:
    folder = write_files(pki)
    both = folder / "both.pem"
    for cert, private in ((both, both), (both.read_bytes(), both.read_text())):
        async with AsyncClient(ports.mutual, tls=TLS(pki.ca, cert, private)) as client:
            assert not (await client.batch_get(["x"])).messages


def test_command_names_the_option(ports: Ports, pki: Pki, tmp_path: Path) -> None:
    folder = write_files(pki)
    ca = ("--tls-ca", str(pki.ca))
    run = Sagastore(ports.mutual, tmp_path).run

    def line(*options: str, status: int = ExitStatus.UNAVAILABLE) -> str:
        done = run(*options, "get", "x")
        assert done.returncode == status
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("sagastore: ").rstrip("\n")

    cert = ("--tls-cert", str(folder / "client.pem"))
    failed = ExitStatus.FAILED
    belong = "--tls-cert and --tls-key belong together; give both or neither"
    for one in (cert, ("--tls-key", str(folder / "client.key"))):
        assert line(*ca, *one, status=ExitStatus.USAGE) == (
            f"{belong}; for help, run: sagastore get -h"
        )
    mismatch = line(*ca, *cert, "--tls-key", str(folder / "other.key"), status=failed)
    assert mismatch.startswith(f"--tls-key: {folder}/other.key does not match the first cert")
    assert line("--tls") == (
        f"cannot reach {ports.mutual}: the server's certificate is not trusted; see --tls-ca"
    )
    assert line("--target", ports.plain, *ca) == (
        f"cannot reach {ports.plain}: the server does not use TLS on this port; leave out --tls, "
        "or check the port"
    )


def test_validity_is_read_from_every_form_of_time() -> None:
    """UTCTime until 2049, GeneralizedTime from 2050 on (RFC 5280, section 4.1.2.5)."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x" * 64)])
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    years = [datetime(year, 5, 6, 7, 8, 9, tzinfo=UTC) for year in (1999, 2049, 2050)]
    for ends in (*years, last):
        certificate = (
            x509.CertificateBuilder(name, name, private.public_key(), 2**100)
            .not_valid_before(datetime(1990, 1, 1, tzinfo=UTC))
            .not_valid_after(ends)
            .sign(private, hashes.SHA256())
        )
        der = certificate.public_bytes(Encoding.DER)
        assert validity(der) == ends
        for length in range(0, len(der), 7):
            validity(der[:length])  # Does not fail.
