"""Authentication and authorization, over a socket against a real server."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection_pb2,
    reflection_pb2_grpc,
)

from sagastore import (
    TLS,
    Client,
    Message,
    PermissionDeniedError,
    Phase,
    RetryPolicy,
    ServingStatus,
    UnauthenticatedError,
    UnavailableError,
)
from tests.security.pki import Pki, chain, key
from tests.support.server_process import ServerProcess

ONCE = RetryPolicy(max_attempts=1)


def connect(server: ServerProcess, tls: TLS | bool, token: str | None = None) -> Client:
    return Client(server.address, tls=tls, token=token, retry=ONCE)


def reads(client: Client) -> list[Callable[[], object]]:
    return [
        lambda: client.batch_get(["x"]),
        lambda: client.list("s").page(),
        lambda: client.search("words").page(),
        lambda: list(client.export()),
    ]


def writes(client: Client) -> list[Callable[[], object]]:
    return [
        lambda: client.save(Message("openai", "user", "hello", id="written")),
        lambda: client.bulk_save([Message("openai", "user", "hello", id="written")]),
        lambda: client.delete("written"),
    ]


def migrates(client: Client) -> list[Callable[[], object]]:
    def watch() -> None:
        for _ in client.migration.watch():
            break

    return [
        client.migration.get,
        client.migration.control_backfill,
        lambda: client.migration.quarantine().page(),
        watch,
    ]


def succeed(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        call()


def fail(calls: list[Callable[[], object]], kind: type[Exception], match: str) -> None:
    for call in calls:
        with pytest.raises(kind, match=match):
            call()


def test_reader_may_only_read(mutual: ServerProcess, pki: Pki) -> None:
    with connect(mutual, pki.client(), "reader-token") as client:
        succeed(reads(client))
        refusal = "'the-reader' has the role reader; this method requires "
        fail(writes(client), PermissionDeniedError, f"{refusal}writer")
        fail(migrates(client), PermissionDeniedError, f"{refusal}admin")


def test_writer_may_not_migrate(mutual: ServerProcess, pki: Pki) -> None:
    with connect(mutual, pki.client(), "writer-token") as client:
        succeed(writes(client) + reads(client))
        fail(
            migrates(client),
            PermissionDeniedError,
            "has the role writer; this method requires admin",
        )
        with pytest.raises(PermissionDeniedError):
            client.migration.change_phase(Phase.DUAL_WRITE)
        with pytest.raises(PermissionDeniedError):
            list(client.migration.verify())


def test_admin_may_do_everything(mutual: ServerProcess, pki: Pki) -> None:
    with connect(mutual, pki.client(), "admin-token") as client:
        calls = migrates(client)
        # Not the backfill: without a migration it fails with another error.
        succeed([*writes(client), *reads(client), calls[0], calls[2], calls[3]])


@pytest.mark.parametrize(
    ("names", "may"),
    [
        ("client.example", (False, False)),
        ("other.example CN=The Writer", (True, False)),
        ("10.0.0.7", (True, True)),
        ("client.example 10.0.0.7", (True, True)),  # The highest role counts.
    ],
)
def test_certificate_has_the_highest_role_of_its_names(
    mutual: ServerProcess, pki: Pki, names: str, may: tuple[bool, bool]
) -> None:
    alternative, _, common_name = names.partition(" CN=")
    leaf = pki.issue(*alternative.split(), common_name=common_name or None)
    with connect(mutual, pki.client(leaf)) as client:
        succeed(reads(client))
        for allowed, call in zip(may, (writes(client)[0], client.migration.get), strict=True):
            if allowed:
                call()
            else:
                fail([call], PermissionDeniedError, "has the role")


def test_token_takes_precedence_over_a_certificate(mutual: ServerProcess, pki: Pki) -> None:
    admin = pki.client(pki.issue("10.0.0.7"))
    with connect(mutual, admin, "reader-token") as client:
        fail(writes(client), PermissionDeniedError, "'the-reader'")
    with connect(mutual, admin, "wrong-token") as client:
        fail(reads(client) + writes(client), UnauthenticatedError, "does not know this token")
    with connect(mutual, admin, "old-token") as client:
        fail(reads(client) + migrates(client), UnauthenticatedError, "of 'old' has expired")


def test_unknown_certificate_is_unauthenticated(mutual: ServerProcess, pki: Pki) -> None:
    unknown = pki.client(pki.issue("unknown.example"))
    with connect(mutual, unknown) as client:
        fail(
            reads(client) + writes(client) + migrates(client),
            UnauthenticatedError,
            "knows none of the names in this certificate: 'unknown.example'",
        )
        assert client.health() is ServingStatus.SERVING
    with connect(mutual, unknown, "writer-token") as client:
        succeed(writes(client))


@pytest.mark.parametrize(
    "header",
    ["Basic d3JpdGVyOng=", "writer-token", "Bearer", "Bearer ", "Bearer writer-token x", "bearer"],
)
def test_malformed_authorization_is_unauthenticated(
    mutual: ServerProcess, pki: Pki, header: str
) -> None:
    for metadata in (
        [("authorization", header)],
        [("authorization", "Bearer writer-token"), ("authorization", header)],
    ):
        code, text = _get(mutual, pki.client(), metadata)
        assert code is grpc.StatusCode.UNAUTHENTICATED, text
        assert "writer-token" not in text


def test_authorization_scheme_is_case_insensitive(mutual: ServerProcess, pki: Pki) -> None:
    code, _ = _get(mutual, pki.client(), [("authorization", "BEARER reader-token")])
    assert code is grpc.StatusCode.NOT_FOUND


def test_unauthenticated_request_is_not_parsed(mutual: ServerProcess, pki: Pki) -> None:
    """The request is no valid message, which only an authenticated caller learns."""
    unknown = pki.client(pki.issue("unknown.example"))
    assert _get(mutual, unknown, [], b"\xff\xff")[0] is grpc.StatusCode.UNAUTHENTICATED
    assert _get(mutual, pki.client(), [], b"\xff\xff")[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_untrusted_certificate_fails_the_handshake(mutual: ServerProcess, pki: Pki) -> None:
    foreign = Pki(pki.folder / "foreign")
    for tls in (
        TLS(ca=pki.ca),
        pki.client(pki.expired("client.example")),
        pki.client(foreign.issue("client.example")),
    ):
        with connect(mutual, tls, "admin-token") as client:
            fail(reads(client), UnavailableError, "closed the connection after the TLS handshake")
            with pytest.raises(UnavailableError):
                client.health()


def test_plaintext_client_is_refused(mutual: ServerProcess) -> None:
    with connect(mutual, False, "admin-token") as client:
        fail(reads(client), UnavailableError, "does the server require TLS")


@pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
)
def test_tls_1_2_is_the_lowest_version(
    mutual: ServerProcess, pki: Pki, version: ssl.TLSVersion
) -> None:
    leaf = pki.issue("client.example")
    file = pki.write("both.pem", key(leaf) + chain(leaf))
    context = ssl.create_default_context(cafile=str(pki.ca))
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(file)
    host, _, port = mutual.address.rpartition(":")
    with pytest.warns() if version is ssl.TLSVersion.TLSv1_1 else nullcontext():
        context.minimum_version = context.maximum_version = version
    with socket.create_connection((host, int(port))) as raw:
        if version is ssl.TLSVersion.TLSv1_1:
            with pytest.raises(OSError):  # noqa: PT011 - which one depends on the library
                context.wrap_socket(raw, server_hostname="localhost")
        else:
            with context.wrap_socket(raw, server_hostname="localhost") as secured:
                assert secured.version() == version.name.replace("_", ".")


def test_log_has_no_secrets_and_no_lines_of_grpc(mutual: ServerProcess) -> None:
    assert mutual.alive
    lines = list(mutual.stderr)
    assert [line for line in lines if not line.startswith('{"')] == []
    assert not [line for line in lines if "-token" in line or "PRIVATE" in line]


def test_reflection_can_be_disabled(mutual: ServerProcess, pki: Pki) -> None:
    with grpc.secure_channel(mutual.address, pki.client().credentials()) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            next(iter(stub.ServerReflectionInfo(iter([asked]))))


def _get(
    server: ServerProcess, tls: TLS, metadata: list[tuple[str, str]], request: bytes = b"\n\x01x"
) -> tuple[grpc.StatusCode, str]:
    with grpc.secure_channel(server.address, tls.credentials()) as channel:
        call: Any = channel.unary_unary("/sagastore.v1.StorageService/Get")
        with pytest.raises(grpc.RpcError) as caught:
            call(request, metadata=metadata, timeout=60)
        error: Any = caught.value
        return error.code(), error.details()
