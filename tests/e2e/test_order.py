"""Order of conversations with equal timestamps, through the command, the client and gRPC."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sagastore import AsyncClient, InvalidArgumentError, Message, Order
from sagastore.v1 import storage_pb2
from sagastore_server.rpc.admission import Limits
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.phase import Phase
from tests.cli.command import Sagastore
from tests.support.backends import KINDS, opened
from tests.support.in_process_server import Served, served
from tests.support.legacy_db import PLAIN, contents_of, legacy_db
from tests.support.migrating_service import eventually_current, opened_live, walk_to
from tests.support.postgres import fresh_schema

THEN = datetime(2025, 4, 2, 10, tzinfo=UTC)
SERVICES = ["sqlite", "postgresql", *(phase.slug for phase in Phase)]
TURNS = 40


@asynccontextmanager
async def _service(name: str, folder: Path) -> AsyncIterator[tuple[Served, AsyncClient]]:
    """Serve an empty store of a kind."""
    await asyncio.to_thread(folder.mkdir)
    async with (
        KINDS[name].place(folder) as make,
        opened(make) as backend,
        _served(backend) as found,
    ):
        yield found


@asynccontextmanager
async def _served(backend: StorageBackend) -> AsyncIterator[tuple[Served, AsyncClient]]:
    async with served(backend, Limits()) as server, AsyncClient(server.address) as client:
        yield server, client


def _ids(count: int, seed: int) -> list[str]:
    """Return ids that do not ascend."""
    return [f"m-{number:05}" for number in random.Random(seed).sample(range(99_999), count)]


def _said(ids: list[str], session: str) -> list[Message]:
    return [
        Message("openai", "user", f"turn {at}", id=id, timestamp=THEN, session_id=session)
        for at, id in enumerate(ids)
    ]


async def _turns(client: AsyncClient, session: str) -> list[str]:
    """List a session in pages, in both directions, and through a search."""
    listed = [one async for one in client.list(session, page_size=7)]
    newest = [one async for one in client.list(session, page_size=7, newest_first=True)]
    assert newest == listed[::-1]
    found = [one.message async for one in client.search(session_id=session, order=Order.OLDEST)]
    assert found == listed
    assert [one.sequence for one in listed] == sorted({one.sequence for one in listed} - {0})
    return [one.content for one in listed]


def _no_ids(path: Path) -> Path:
    """Write JSON Lines whose messages have neither an id nor a time."""
    lines = [
        {"provider": "openai", "role": ("user", "assistant")[at % 2], "content": f"turn {at}",
         "session_id": "imported"}
        for at in range(TURNS)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


async def _run(cli: Sagastore, *args: str | Path) -> str:
    return await asyncio.to_thread(cli.ok, *args)


@pytest.mark.parametrize("name", SERVICES)
async def test_conversations_list_in_order_of_writing(name: str, tmp_path: Path) -> None:
    async with _service(name, tmp_path / "one") as (server, client):
        for message in _said(_ids(TURNS, 1), "single"):
            await client.save(message)
        batch = _said(_ids(TURNS, 2), "batch")
        await client.bulk_save(batch, batch_size=3)
        cli = Sagastore(server.address, tmp_path)
        lines = _no_ids(tmp_path / "noid.jsonl")
        await _run(cli, "import", "--batch-size", "3", lines)
        expected = [f"turn {at}" for at in range(TURNS)]
        for session in ("single", "batch", "imported"):
            assert await _turns(client, session) == expected
        # A replacement does not move a message; a deletion does.
        await client.save(replace(batch[3], content="turn 3, again"))
        await client.delete(batch[5].id)
        await client.bulk_save([batch[5]])
        changed = [*expected[:3], "turn 3, again", expected[4], *expected[6:], expected[5]]
        assert await _turns(client, "batch") == changed


@pytest.mark.parametrize("name", ["sqlite", "postgresql", "read-postgres"])
async def test_export_and_import_restore_order_and_creation_times(
    name: str, tmp_path: Path
) -> None:
    exported = tmp_path / "export.jsonl"
    async with _service(name, tmp_path / "one") as (server, client):
        for message in _said(_ids(5, 3), "s"):
            await client.save(message)
        await client.bulk_save(_said(_ids(TURNS, 4), "t"))
        await client.save(replace(_said(_ids(5, 3), "s")[0], content="replaced"))
        await _run(Sagastore(server.address, tmp_path), "export", exported)
        before = {session: await _lasting(client, session) for session in "st"}
    assert len({created for _, _, created in before["s"]}) > 1
    for target in ("sqlite", "postgresql"):
        async with _service(target, tmp_path / target) as (server, client):
            cli = Sagastore(server.address, tmp_path / target)
            await _run(cli, "import", "--batch-size", "4", exported)
            after = {session: await _lasting(client, session) for session in "st"}
            assert after == before


async def _lasting(client: AsyncClient, session: str) -> list[tuple[object, ...]]:
    return [(one.id, one.content, one.created_at) async for one in client.list(session)]


async def test_store_file_is_imported_in_order_with_creation_times(tmp_path: Path) -> None:
    async with _service("sqlite", tmp_path / "one") as (_, client):
        for message in _said(_ids(12, 5), "s"):
            await client.save(message)
        before = await _lasting(client, "s")
    async with _service("postgresql", tmp_path / "two") as (server, client):
        file = tmp_path / "one" / "messages.db"
        await _run(Sagastore(server.address, tmp_path), "import", "--batch-size", "5", file)
        assert await _lasting(client, "s") == before


@pytest.mark.parametrize("keep", [True, False])
async def test_invalid_creation_time_is_rejected_only_if_it_is_kept(
    tmp_path: Path, keep: bool
) -> None:
    async with _service("sqlite", tmp_path / "one") as (server, client), server.stub() as stub:
        request = storage_pb2.BulkSaveRequest(sequence=1, keep_created_at=keep)
        for id, seconds in (("good", 1_700_000_000), ("bad", 10**12)):
            message = request.messages.add(id=id, provider="openai", role="user", content="x")
            message.created_at.seconds = seconds
        (answer,) = [one async for one in stub.BulkSave(iter([request]))]
        assert [(one.id, one.field) for one in answer.rejected] == [("bad", "created_at")] * keep
        created = (await client.get("good")).created_at
        assert created is not None
        assert (created == datetime.fromtimestamp(1_700_000_000, UTC)) is keep


def _ties(path: Path) -> Path:
    """Write a legacy file in which question and answer have the same time, to the second."""
    path.parent.mkdir()
    rows = [
        PLAIN | {
            "id": id,
            "role": ("user", "assistant")[at % 2],
            "content": f"turn {at}",
            "timestamp": f"2025-04-02T10:00:{at // 8:02}",
        }
        for at, id in enumerate(_ids(TURNS, 6))
    ]  # fmt: skip
    return legacy_db(path, rows)


async def test_legacy_file_keeps_row_order_in_every_phase(tmp_path: Path) -> None:
    path = _ties(tmp_path / "legacy" / "memory.db")
    expected = [f"turn {at}" for at in range(TURNS)]
    async with (
        fresh_schema() as dsn,
        opened_live(path, dsn) as service,
        _served(service.backend) as (_, client),
    ):
        for phase in Phase:
            await walk_to(service.control, phase)
            if phase is Phase.READ_POSTGRES:
                await eventually_current(service.control)
            assert await _turns(client, "s") == expected
        await client.bulk_save(_said(_ids(3, 7), "s"))
        listed = [one.content async for one in client.list("s")]
        assert listed == [*expected[:8], *expected[:3], *expected[8:]]


async def test_legacy_file_is_imported_in_row_order(tmp_path: Path) -> None:
    path = _ties(tmp_path / "legacy" / "memory.db")
    before = contents_of(path.parent)
    async with _service("postgresql", tmp_path / "one") as (server, client):
        await _run(Sagastore(server.address, tmp_path), "import", "--batch-size", "3", path)
        assert await _turns(client, "s") == [f"turn {at}" for at in range(TURNS)]
        created = {one.created_at async for one in client.list("s")}
        assert created == {datetime(2025, 4, 2, 10, 0, 1, tzinfo=UTC)}
    assert contents_of(path.parent) == before


def _token(position: list[object], *request: object) -> str:
    """Return a token as version 1 of the tokens was encoded."""
    key = json.dumps(request, separators=(",", ":")).encode()
    text = json.dumps(position, separators=(",", ":")).encode()
    digest = hashlib.blake2b(digest_size=16, person=b"sagastore.token")
    digest.update(len(key).to_bytes(8, "big") + key + text)
    return base64.urlsafe_b64encode(b"\x01" + digest.digest() + text).decode().rstrip("=")


async def test_tokens_of_the_former_order_are_refused_by_name(tmp_path: Path) -> None:
    async with _service("sqlite", tmp_path / "one") as (server, client):
        await client.bulk_save(_said(_ids(9, 8), "s"))
        page = _token([1_743_588_000_000_000, "m-00001"], "List", "s", False)
        calls = {
            "page_token": client.list("s").page(page),
            "resume_token": anext(client.export_batches(resume_token=_token(["a", "z"], "Export"))),
        }
        for field, call in calls.items():
            with pytest.raises(InvalidArgumentError) as caught:
                await call
            (violation,) = caught.value.violations
            assert violation.field == field
            assert "a token of an earlier version of SagaStore" in violation.description
        async with server.stub() as stub:
            request = storage_pb2.SearchRequest(session_id="s", page_token=_token([1, "m"], "x"))
            with pytest.raises(Exception, match="a token of an earlier version of SagaStore"):
                await stub.Search(request)
