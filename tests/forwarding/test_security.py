"""Forwarding with TLS, client certificates, tokens and audit trails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sagastore import TLS, AsyncClient, Message, UnauthenticatedError
from tests.security.pki import Pki, chain, entry, environment, key, write_access
from tests.support.ports import ReservedPort
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

TOKENS = (entry("token", "web", "writer", token="web-token"),)
FORWARDER = "forwarder.example"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


class Secured:
    """A holder with mutual TLS that gives the certificate of its forwarders the role admin."""

    def __init__(self, folder: Path, pki: Pki) -> None:
        """Write its files."""
        self.folder, self.pki = folder, pki
        self.tls = pki.server()
        access = write_access(
            folder / "access.toml", *TOKENS, entry("certificate", FORWARDER, "admin")
        )
        self.audit = folder / "audit.log"
        env = environment(self.tls, pki.ca, access) | {"SAGASTORE_AUDIT": str(self.audit)}
        self.holder = ServerProcess(folder / "sagastore.db", env=env)
        leaf = pki.issue(FORWARDER)
        self.cert = pki.write("forwarder.pem", chain(leaf))
        self.key = pki.write("forwarder.key", key(leaf))

    @asynccontextmanager
    async def forwarder(self, **settings: str) -> AsyncIterator[ServerProcess]:
        """Run a forwarder; ``settings`` replace its usual ones, or remove them if empty."""
        tokens = write_access(self.folder / "tokens.toml", *TOKENS)
        env = environment(self.tls, None, tokens) | {
            "SAGASTORE_FORWARD": "true",
            "SAGASTORE_FORWARD_TO": self.holder.address,
            "SAGASTORE_FORWARD_CA": str(self.pki.ca),
            "SAGASTORE_FORWARD_CERT": str(self.cert),
            "SAGASTORE_FORWARD_KEY": str(self.key),
        }
        env |= {f"SAGASTORE_{name}": value for name, value in settings.items()}
        unused = ReservedPort()
        server = ServerProcess(
            self.folder / "none.db",
            env={name: value for name, value in env.items() if value},
            postgres=f"postgresql://user@{unused.address}/nothing",
        )
        try:
            server.spawn()
            await asyncio.to_thread(server.wait_for_event, "forwarding starts")
            yield server
        finally:
            server.close()
            unused.close()

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the audit trail."""
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@pytest.fixture(scope="module")
def secured(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Run such a holder for the tests of this module."""
    made = Secured(tmp_path_factory.mktemp("secured"), pki)
    try:
        made.holder.start()
        yield made
    finally:
        made.holder.close()


async def test_callers_keep_their_identity_over_mutual_tls(secured: Secured, pki: Pki) -> None:
    async with secured.forwarder() as forwarder:
        await asyncio.to_thread(forwarder.wait_for_event, "forwarding")
        tls = TLS(ca=pki.ca)
        async with AsyncClient(forwarder.address, tls=tls, token="web-token") as client:
            await client.save(Message("openai", "user", "hello", id="m-1"))
            assert (await client.get("m-1")).content == "hello"
        await until(lambda: any(line["event"] == "change" for line in secured.lines()))
        (line,) = [line for line in secured.lines() if line["event"] == "change"]
        assert (line["caller"], line["role"], line["id"]) == ("web", "writer", "m-1")
        assert line["client"].startswith("127.0.0.1:")
        assert line["client"] != line["peer"]


async def test_certificate_of_the_forwarder_gives_its_callers_no_role(
    secured: Secured, pki: Pki
) -> None:
    """A forwarder without access control on the loopback address: local programs can call it."""
    async with secured.forwarder(ACCESS="") as forwarder:
        await asyncio.to_thread(forwarder.wait_for_event, "forwarding")
        async with AsyncClient(forwarder.address, tls=TLS(ca=pki.ca)) as client:
            with pytest.raises(UnauthenticatedError, match="certificates do not count"):
                await client.get("m-1")
        own = TLS(ca=pki.ca, cert=secured.cert, key=secured.key)
        async with AsyncClient(secured.holder.address, tls=own) as client:
            assert (await client.migration.get()).epoch == 1


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        (lambda _: {"FORWARD_CERT": "", "FORWARD_KEY": ""}, "closed the connection"),
        (lambda _: {"FORWARD_CERT": "", "FORWARD_KEY": "", "FORWARD_CA": ""}, "set forward_ca"),
        (
            lambda folder: {"FORWARD_CA": str(Pki(folder / "other").ca)},
            "its certificate is not trusted; check forward_ca",
        ),
    ],
)
async def test_mistakes_with_tls_are_named(
    tmp_path: Path, secured: Secured, settings: Callable[[Path], dict[str, str]], cause: str
) -> None:
    async with secured.forwarder(**settings(tmp_path)) as forwarder:
        await until(
            lambda: any(
                event["event"] == "holder not available" and cause in event["reason"]
                for event in forwarder.events
            )
        )


async def test_certificate_entries_of_a_forwarder_are_refused(tmp_path: Path, pki: Pki) -> None:
    access = write_access(
        tmp_path / "access.toml", *TOKENS, entry("certificate", "client.example", "reader")
    )
    env = environment(pki.server(), pki.ca, access) | {"SAGASTORE_FORWARD": "true"}
    server = ServerProcess(tmp_path / "none.db", env=env, postgres="postgresql://x@127.0.0.1:9/x")
    server.spawn()
    assert await asyncio.to_thread(server.wait) == 1
    assert "a certificate cannot be passed on by a server with forward" in server.stderr[-1]


async def test_unusable_authorities_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    env = {"SAGASTORE_FORWARD": "true", "SAGASTORE_FORWARD_CA": str(tmp_path / "ca.pem")}
    server = ServerProcess(tmp_path / "none.db", env=env, postgres="postgresql://x@127.0.0.1:9/x")
    server.spawn()
    assert await asyncio.to_thread(server.wait) == 1
    assert "ca.pem is not PEM" in server.stderr[-1]
