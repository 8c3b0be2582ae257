"""Every RPC of FileService over a real socket."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from sagastore.v1 import file_pb2, storage_pb2
from sagastore.v1.file_pb2_grpc import FileServiceStub
from sagastore_server.interfaces.access import Role
from sagastore_server.rpc.admission import Limits, required_role
from sagastore_server.rpc.server import METHODS
from sagastore_server.sqlite.backend import SQLiteStorage
from tests.support.backends import opened
from tests.support.in_process_server import Served, served
from tests.support.messages import at
from tests.support.rpc_errors import refusal_of


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Served]:
    """Serve an empty store."""
    async with (
        opened(lambda: SQLiteStorage(tmp_path / "messages.db")) as backend,
        served(backend, Limits()) as running,
    ):
        yield running


@pytest.fixture
async def files(server: Served) -> AsyncIterator[Any]:
    """Call FileService. The published types of a stub are those of blocking calls."""
    async with server.channel() as channel:
        yield FileServiceStub(channel)


def record(file_id: str = "f-1", **fields: Any) -> file_pb2.File:
    """Return a valid record."""
    values: dict[str, Any] = {
        "filename": "notes.md",
        "filepath": "/in/notes.md",
        "file_type": "text/markdown",
        "uploaded_at": at(1_700_000_000, 123_456_000),
    }
    return file_pb2.File(id=file_id, **{**values, **fields})


async def save(files: Any, sent: file_pb2.File, **fields: Any) -> file_pb2.SaveFileResponse:
    answer: file_pb2.SaveFileResponse = await files.SaveFile(
        file_pb2.SaveFileRequest(file=sent, **fields)
    )
    return answer


async def get(files: Any, file_id: str) -> file_pb2.File:
    answer: file_pb2.GetFileResponse = await files.GetFile(file_pb2.GetFileRequest(id=file_id))
    return answer.file


async def refused(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    """Return code, reason and invalid fields of a refused call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = refusal_of(caught.value)
    return found.code, found.reason, list(found.fields)


async def test_saved_file_round_trips(files: Any) -> None:
    sent = record(
        extracted_text="Gr\u00fc\u00dfe \U0001f600\n",
        tags=["b", "a", "a"],
        file_size=2**63 - 1,
        metadata_json='{"b": 1.50, "a": null}',
    )
    answer = await save(files, sent, durability=storage_pb2.DURABILITY_BOTH)
    assert (answer.id, answer.created) == ("f-1", True)
    assert list(answer.durable_on) == [storage_pb2.STORE_SQLITE]
    found = await get(files, "f-1")
    assert found.revision == answer.revision
    assert found.created_at.seconds > 1_700_000_000
    found.ClearField("created_at")
    found.ClearField("revision")
    assert found.metadata_json == '{"a": null, "b": 1.50}'
    found.metadata_json = sent.metadata_json
    assert found == sent
    again = await save(files, sent, if_revision=answer.revision)
    assert (again.revision, again.created) == (answer.revision, False)


async def test_id_and_time_are_assigned(files: Any) -> None:
    sent = record("", uploaded_at=None)
    answer = await save(files, sent)
    assert uuid.UUID(answer.id).version == 7
    found = await get(files, answer.id)
    assert found.uploaded_at.seconds > 1_700_000_000
    assert (found.metadata_json, found.file_size, found.extracted_text) == ("{}", 0, "")


async def test_guards(files: Any) -> None:
    first = await save(files, record(), if_revision=0)
    assert await refused(save(files, record(), if_revision=0)) == (
        grpc.StatusCode.ALREADY_EXISTS, "FILE_EXISTS", [],
    )  # fmt: skip
    assert await refused(save(files, record(file_size=1), if_revision=first.revision + 1)) == (
        grpc.StatusCode.ABORTED, "FILE_REVISION_MISMATCH", [],
    )  # fmt: skip
    stale = file_pb2.DeleteFileRequest(id="f-1", if_revision=first.revision + 1)
    assert (await refused(files.DeleteFile(stale)))[0] is grpc.StatusCode.ABORTED
    await files.DeleteFile(file_pb2.DeleteFileRequest(id="f-1", if_revision=first.revision))
    missing: tuple[grpc.StatusCode, str, list[str]] = (
        grpc.StatusCode.NOT_FOUND,
        "FILE_NOT_FOUND",
        [],
    )
    assert await refused(get(files, "f-1")) == missing
    assert await refused(files.DeleteFile(file_pb2.DeleteFileRequest(id="f-1"))) == missing


async def test_pages_newest_first(files: Any) -> None:
    for number in range(7):
        tags = ["even"] if number % 2 == 0 else []
        await save(files, record(f"f-{number}", uploaded_at=at(1000 + number // 2), tags=tags))
    found, token = [], ""
    while True:
        page = await files.ListFiles(
            file_pb2.ListFilesRequest(page_size=2, page_token=token, tags=["even"])
        )
        found += [one.id for one in page.files]
        token = page.next_page_token
        if not token:
            break
    assert found == ["f-6", "f-4", "f-2", "f-0"]
    first = await files.ListFiles(file_pb2.ListFilesRequest(page_size=3))
    assert [one.id for one in first.files] == ["f-6", "f-5", "f-4"]
    wrong = file_pb2.ListFilesRequest(page_token=first.next_page_token, tags=["even"])
    code, _, fields = await refused(files.ListFiles(wrong))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


async def test_every_violation_is_reported(files: Any) -> None:
    sent = file_pb2.File(
        id="x" * 129,
        filename="",
        filepath="p" * 4097,
        file_type="a\0",
        extracted_text="\u00e4" * (3 * 1024 * 1024 // 2 + 1),
        tags=["ok", ""],
        file_size=-1,
        uploaded_at=at(0, -1),
        metadata_json="[]",
    )
    code, _, fields = await refused(save(files, sent, if_revision=-1, durability=9))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(fields) == sorted(
        [
            "durability",
            "file.extracted_text",
            "file.file_size",
            "file.file_type",
            "file.filename",
            "file.filepath",
            "file.id",
            "file.metadata_json",
            "file.tags[1]",
            "file.uploaded_at",
            "if_revision",
        ]
    )
    for call, field in (
        (files.SaveFile(file_pb2.SaveFileRequest()), "file"),
        (files.GetFile(file_pb2.GetFileRequest()), "id"),
        (files.DeleteFile(file_pb2.DeleteFileRequest(id="a", if_revision=0)), "if_revision"),
        (files.ListFiles(file_pb2.ListFilesRequest(page_size=-1)), "page_size"),
        (files.ListFiles(file_pb2.ListFilesRequest(tags=[""])), "tags[0]"),
    ):
        code, _, fields = await refused(call)
        assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_service_has_health_and_roles(server: Served) -> None:
    async with server.channel() as channel:
        request = health_pb2.HealthCheckRequest(service="sagastore.v1.FileService")
        answer = await health_pb2_grpc.HealthStub(channel).Check(request)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    service = file_pb2.DESCRIPTOR.services_by_name["FileService"]
    assert {method.name: required_role(method) for method in service.methods} == {
        "SaveFile": Role.WRITER,
        "GetFile": Role.READER,
        "ListFiles": Role.READER,
        "DeleteFile": Role.WRITER,
    }
    assert {f"sagastore.v1.FileService/{one.name}" for one in service.methods} <= set(METHODS)
