"""TLS, client certificates and tokens against a real server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sagastore import (
    TLS,
    AsyncClient,
    Client,
    Message,
    NotFoundError,
    PermissionDeniedError,
    RetryPolicy,
    TokenFile,
    UnavailableError,
)
from sagastore._target import Token
from sagastore.cli.failures import CommandError
from sagastore.cli.settings import Settings
from tests.cli.command import Sagastore
from tests.security.pki import CLIENT, Pki, chain, entry, environment, key, write_access
from tests.support.server_process import ServerProcess

ONCE = RetryPolicy(max_attempts=1)
NAME = "saga.example"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def secured(pki: Pki) -> Iterator[ServerProcess]:
    """Serve over TLS with client certificates, which may read; a token may write."""
    access = write_access(
        pki.folder / "access.toml",
        entry("certificate", CLIENT, "reader"),
        entry("token", "web", "writer", token="secret"),
    )
    files = pki.server(pki.issue(NAME, "127.0.0.1"))
    server = ServerProcess(pki.folder / "saga.db", env=environment(files, pki.ca, access))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def command(secured: ServerProcess, pki: Pki, tmp_path: Path) -> Sagastore:
    """Return the command, set up by its environment."""
    leaf = pki.issue(CLIENT)
    run = Sagastore(secured.address, tmp_path)
    run.env |= {
        "SAGASTORE_TLS_CA": str(pki.ca),
        "SAGASTORE_TLS_CERT": str(pki.write("client.pem", chain(leaf))),
        "SAGASTORE_TLS_KEY": str(pki.write("client.key", key(leaf))),
    }
    return run


async def refused(secured: ServerProcess, tls: TLS | bool, token: Token | None = None) -> str:
    async with AsyncClient(secured.address, tls=tls, token=token, retry=ONCE) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.get("x")
    assert caught.value.unsent
    line = str(caught.value)
    assert line.startswith(f"cannot reach {secured.address}: ")
    return line


async def test_mutual_tls_with_token_works(secured: ServerProcess, pki: Pki) -> None:
    message = Message("openai", "user", "over TLS", id="m")
    async with AsyncClient(secured.address, tls=pki.client()) as client:
        with pytest.raises(PermissionDeniedError):
            await client.save(message)
    async with AsyncClient(secured.address, tls=pki.client(), token="secret") as client:
        await client.save(message)
    with Client(secured.address, tls=pki.client(), token=lambda: "secret") as blocking:
        assert (await asyncio.to_thread(blocking.get, "m")).content == "over TLS"


async def test_certificates_are_accepted_as_paths_bytes_and_text(
    secured: ServerProcess, pki: Pki
) -> None:
    leaf = pki.issue(CLIENT)
    files = [pki.ca, pki.write("c.pem", chain(leaf)), pki.write("c.key", key(leaf))]
    for ca, cert, private in (
        [str(file) for file in files],
        [file.read_bytes() for file in files],
        [file.read_text() for file in files],
    ):
        tls = TLS(ca=ca, cert=cert, key=private, server_name=NAME)
        async with AsyncClient(secured.address, tls=tls) as client:
            with pytest.raises(NotFoundError):
                await client.get("unknown")


async def test_closed_connection_is_reported_with_likely_cause(
    secured: ServerProcess, pki: Pki
) -> None:
    full = pki.client()
    foreign = Pki(pki.folder / "foreign")
    plain = "closed the connection; does the server require TLS (tls=True)?"
    assert (await refused(secured, False, "secret")).endswith(plain)
    wanted = "does it require a client certificate (TLS(cert=..., key=...))?"
    assert (await refused(secured, TLS(ca=pki.ca), "secret")).endswith(wanted)
    untrusted = "does it trust the authority of the client certificate (tls_client_ca)?"
    assert (await refused(secured, replace(foreign.client(), ca=pki.ca))).endswith(untrusted)
    expired = await refused(secured, pki.client(pki.expired(CLIENT)))
    assert re.search(r"the client certificate expired on 20\d\d-\d\d-\d\d; renew it$", expired)
    not_trusted = "the server's certificate is not trusted; see TLS(ca=...)"
    assert (await refused(secured, replace(full, ca=foreign.ca))).endswith(not_trusted)
    assert (await refused(secured, True)).endswith(not_trusted)
    other_name = "the server's certificate is for another name; see TLS(server_name=...)"
    other = replace(full, server_name="other.example")
    assert (await refused(secured, other)).endswith(other_name)


async def test_tls_to_a_plain_text_port_is_reported(
    running_server: ServerProcess, pki: Pki
) -> None:
    line = await refused(running_server, pki.client(), "secret")
    assert line.endswith("does not use TLS on this port; leave out tls, or check the port")


def test_token_file_is_read_for_each_call(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    token = TokenFile(path)
    assert token() == "first"
    for content in ("second", "", "t w o"):
        path.write_text(content)
        assert token() == "second"
    path.unlink()
    assert token() == "second"
    assert "second" not in repr(token)
    with pytest.raises(FileNotFoundError):
        TokenFile(path)
    for data in (b"", b"\n", b"a b", b"a\nb", b"\xff\xfe", "ü".encode()):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="token: must be printable ASCII"):
            TokenFile(path)


def test_command_works_over_tls(command: Sagastore, tmp_path: Path) -> None:
    token = tmp_path / "web.token"
    token.write_text("secret\n")
    save = ("save", "--provider", "p", "--role", "user", "--id", "by-command", "hello")
    command.ok("--token-file", token, *save)
    denied = command.run(*save)
    assert denied.returncode == 5
    assert f"'{CLIENT}' has the role reader; this method requires writer" in denied.stderr
    token.write_text("wrong-secret")
    wrong = command.run("--token-file", token, "get", "by-command")
    assert "does not know this token; set SAGASTORE_TOKEN or --token-file" in wrong.stderr
    for run in (denied, wrong):
        assert len(run.stderr.splitlines()) == 1
        assert "secret" not in run.stderr


def test_command_reports_the_missing_option(command: Sagastore, tmp_path: Path) -> None:
    run = command.run("--timeout", "1", "get", "x", SAGASTORE_TLS_CERT="", SAGASTORE_TLS_KEY="")
    assert run.returncode == 4
    assert "does it require a client certificate (--tls-cert, --tls-key)?" in run.stderr
    (tmp_path / "empty").touch()
    with pytest.raises(CommandError, match="empty is not a token: one line of printable ASCII"):
        Settings(token_file=tmp_path / "empty").client()


def test_command_rereads_its_token(tmp_path: Path) -> None:
    """A watch continues after its first token is revoked."""
    access = write_access(tmp_path / "access.toml", entry("token", "ops", "admin", token="one"))
    server = ServerProcess(tmp_path / "saga.db", env=environment(access=access))
    try:
        server.start()
        file = tmp_path / "token"
        file.write_text("one")
        run = Sagastore(server.address, tmp_path)
        with run.start("--json", "--token-file", file, "migrate", "watch") as watch:
            assert watch.stdout is not None
            assert watch.stdout.readline()
            file.write_text("two")
            write_access(access, entry("token", "ops", "admin", token="two"))
            server.wait_for_event("access file reloaded")
            # One line a second: these come from a stream that was begun with the new token.
            for _ in range(4):
                assert watch.stdout.readline()
            watch.terminate()
    finally:
        server.close()
