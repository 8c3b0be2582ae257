"""Calls about file records against a server with scripted failures."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    Client,
    File,
    InvalidArgumentError,
    NotFoundError,
    Store,
)
from sagastore.v1 import file_pb2, storage_pb2
from tests.client.failing.scripted import Script, answer, refuse, unavailable

Code = grpc.StatusCode
REPORT = File("a.pdf", "/a.pdf", "pdf", tags=["x"], file_size=3, metadata={"a": 1.5})
EXISTS = refuse(Code.ALREADY_EXISTS, "the id exists")
MOVED = refuse(Code.ABORTED, "the revision is another")
NOT_FOUND = refuse(Code.NOT_FOUND, "no file has the id 'x'")


def saved(revision: int = 1, *, created: bool = True) -> Any:
    return answer(
        file_pb2.SaveFileResponse(
            id="x", revision=revision, created=created, durable_on=[storage_pb2.STORE_SQLITE]
        )
    )


def stored(script: Script, **changes: Any) -> Any:
    """Respond with the record of the first save, changed."""

    async def step(_: Any, __: Any) -> file_pb2.GetFileResponse:
        response = file_pb2.GetFileResponse(file=script.requests[0].file)
        response.file.revision = 9
        response.file.uploaded_at.seconds = 5
        for name, value in changes.items():
            setattr(response.file, name, value)
        return response

    return step


async def test_file_is_saved_with_one_id(script: Script, client: AsyncClient) -> None:
    script.play("SaveFile", unavailable(), saved(created=False))
    result = await client.files.save(REPORT, durability="both")
    first, second = script.requests
    assert first == second
    assert len(first.file.id) == 36
    assert first.durability == storage_pb2.DURABILITY_BOTH
    assert (first.file.filename, first.file.filepath, first.file.file_type) == (
        *("a.pdf", "/a.pdf"),
        "pdf",
    )
    assert (list(first.file.tags), first.file.file_size) == (["x"], 3)
    assert first.file.metadata_json == '{"a":1.5}'
    assert result.created, "the id was new, whatever the last answer says"
    assert result.revision == 1
    assert result.durable_on == {Store.SQLITE}


@pytest.mark.parametrize(("if_revision", "refusal"), [(0, EXISTS), (4, MOVED)])
async def test_conditional_save_recognizes_its_own_write(
    script: Script, client: AsyncClient, if_revision: int, refusal: Any
) -> None:
    script.play("SaveFile", unavailable(), refusal, saved(9, created=False))
    script.play("GetFile", stored(script))
    result = await client.files.save(REPORT, if_revision=if_revision)
    assert (result.revision, result.created) == (9, if_revision == 0)
    assert script.requests[-1].if_revision == 9


@pytest.mark.parametrize("change", [{"filename": "b"}, {"file_size": 4}, {"metadata_json": "{}"}])
async def test_conditional_save_does_not_claim_another_write(
    script: Script, client: AsyncClient, change: dict[str, Any]
) -> None:
    script.play("SaveFile", unavailable(), EXISTS)
    script.play("GetFile", stored(script, **change))
    with pytest.raises(AlreadyExistsError):
        await client.files.save(REPORT, if_revision=0)


async def test_overtaken_conditional_save_is_aborted(script: Script, client: AsyncClient) -> None:
    script.play("SaveFile", unavailable(), MOVED)
    script.play("GetFile", stored(script))
    with pytest.raises(AbortedError):
        await client.files.save(REPORT, if_revision=4)


async def test_file_has_every_field(script: Script, client: AsyncClient) -> None:
    pb = file_pb2.File(
        id="x",
        filename="a",
        filepath="b",
        file_type="c",
        extracted_text="d",
        tags=["e"],
        file_size=6,
        metadata_json='{"a": 1}',
        revision=7,
    )
    pb.uploaded_at.seconds, pb.created_at.seconds = 1, 2
    script.play("GetFile", answer(file_pb2.GetFileResponse(file=pb)))
    file = await client.files.get("x")
    assert file == File(
        "a",
        "b",
        "c",
        id="x",
        extracted_text="d",
        tags=["e"],
        file_size=6,
        uploaded_at=datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        metadata={"a": 1},
        created_at=datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC),
        revision=7,
    )
    assert {file: 1}[file] == 1


async def test_files_are_listed_in_pages(script: Script, client: AsyncClient) -> None:
    async def page(request: file_pb2.ListFilesRequest, _: Any) -> file_pb2.ListFilesResponse:
        id, token = ("b", "") if request.page_token else ("a", "1")
        return file_pb2.ListFilesResponse(files=[file_pb2.File(id=id)], next_page_token=token)

    script.play("ListFiles", page)
    pager = client.files.list(["x", "y"], page_size=1)
    assert [file.id async for file in pager] == ["a", "b"]
    assert [list(r.tags) for r in script.requests] == [["x", "y"]] * 2
    with pytest.raises(TypeError, match="the one string 'xy'"):
        client.files.list("xy")

    def blocking() -> list[str]:
        with Client(script.address) as other:
            return [file.id for file in other.files.list()]

    assert await asyncio.to_thread(blocking) == ["a", "b"]


async def test_retried_delete_that_finds_nothing_succeeds(
    script: Script, client: AsyncClient
) -> None:
    script.play("DeleteFile", unavailable(), NOT_FOUND)
    await client.files.delete("x", if_revision=3)
    assert script.requests[0].if_revision == 3
    script.play("DeleteFile", NOT_FOUND)
    with pytest.raises(NotFoundError):
        await client.files.delete("x")


def test_invalid_files_are_refused() -> None:
    with pytest.raises(TypeError, match="tags: expected several strings"):
        File("a", "b", "c", tags="x")
    with pytest.raises(TypeError, match="metadata: expected a mapping"):
        File("a", "b", "c", metadata=[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"uploaded_at: .* has no time zone"):
        File("a", "b", "c", uploaded_at=datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("filename", {"filename": "\ud800"}),
        ("extracted_text", {"extracted_text": 3}),
        ("tags", {"tags": [1]}),
        ("file_size", {"file_size": 2**63}),
        ("metadata", {"metadata": {"a": float("nan")}}),
    ],
)
async def test_value_that_cannot_be_sent_is_named(
    script: Script, client: AsyncClient, field: str, values: dict[str, Any]
) -> None:
    file = File(**({"filename": "a", "filepath": "b", "file_type": "c"} | values))
    with pytest.raises(InvalidArgumentError) as caught:
        await client.files.save(file)
    assert caught.value.violations[0].field.startswith(field)
    assert not script.requests
