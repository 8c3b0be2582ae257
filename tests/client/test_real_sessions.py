"""Sessions, asynchronous and blocking, against a real server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    InvalidArgumentError,
    Message,
    NotFoundError,
    Store,
    new_id,
)
from tests.client.conftest import Driver
from tests.support.server_process import ServerProcess

START = datetime(2026, 1, 1, tzinfo=UTC)


def turn(*contents: str, provider: str = "openai", **values: Any) -> list[Message]:
    """Return the messages of a turn, all with the same time."""
    return [Message(provider, "user", text, timestamp=START, **values) for text in contents]


async def texts(driver: Driver, session: str) -> list[str]:
    return [message.content for message in await driver.all("list", session)]


async def test_turns_are_appended_in_order(driver: Driver) -> None:
    session = new_id()
    first = await driver.call("sessions.append", session, turn("a", "b"), if_revision=0)
    assert [s.created for s in first.saved] == [True, True]
    assert first.durable_on == {Store.SQLITE}
    assert first.session.message_count == 2
    second = await driver.call(
        "sessions.append", session, turn("c"), if_revision=first.session.revision
    )
    assert await texts(driver, session) == ["a", "b", "c"], "equal times keep their order"
    sequences = [s.sequence for s in (*first.saved, *second.saved)]
    assert sequences == sorted(sequences)
    assert second.session.last_sequence == sequences[-1]
    message = await driver.call("get", second.saved[0].id)
    assert (message.session_id, message.sequence) == (session, sequences[-1])
    assert message.revision == second.session.revision, (
        "the revision of a session is that of its last change; a lost answer to a guarded append "
        "is recognized by it"
    )


async def test_repeated_append_changes_nothing(driver: Driver) -> None:
    session = new_id()
    messages = turn("a", "b")
    messages = [
        Message("openai", "user", m.content, id=new_id(), timestamp=START) for m in messages
    ]
    first = await driver.call("sessions.append", session, messages)
    again = await driver.call(
        "sessions.append", session, messages, if_revision=first.session.revision
    )
    assert again.session == first.session
    assert [s.created for s in again.saved] == [False, False]
    assert [(s.id, s.revision, s.sequence) for s in again.saved] == [
        (s.id, s.revision, s.sequence) for s in first.saved
    ]


async def test_guards_of_an_append(driver: Driver) -> None:
    session = new_id()
    first = await driver.call("sessions.append", session, turn("a"), if_revision=0)
    with pytest.raises(AlreadyExistsError):
        await driver.call("sessions.append", session, turn("x"), if_revision=0)
    await driver.call("sessions.append", session, turn("b"))
    with pytest.raises(AbortedError):
        await driver.call("sessions.append", session, turn("x"), if_revision=first.session.revision)
    assert await texts(driver, session) == ["a", "b"]


async def test_invalid_turn_stores_nothing(driver: Driver) -> None:
    session = new_id()
    bad = Message("", "user", "x")
    with pytest.raises(InvalidArgumentError) as caught:
        await driver.call("sessions.append", session, [*turn("a"), bad])
    assert caught.value.violations[0].field == "messages[1].provider"
    with pytest.raises(InvalidArgumentError):
        await driver.call("sessions.append", session, [])
    with pytest.raises(InvalidArgumentError):
        await driver.call("sessions.append", session, turn("a", session_id="other"))
    with pytest.raises(NotFoundError):
        await driver.call("sessions.get", session)


async def test_session_describes_its_messages(driver: Driver) -> None:
    session = new_id()
    await driver.call("sessions.append", session, turn("x" * 300))
    later = Message("anthropic", "assistant", "b", timestamp=START + timedelta(hours=1))
    await driver.call("sessions.append", session, [later])
    found = await driver.call("sessions.get", session)
    assert (found.session_id, found.title, found.metadata) == (session, "", {})
    assert (found.message_count, found.providers) == (2, ("anthropic", "openai"))
    assert (found.first_time, found.last_time) == (START, later.timestamp)
    assert found.first_message == "x" * 200
    assert found.created_at <= found.updated_at


async def test_title_and_metadata_are_changed_separately(driver: Driver) -> None:
    session = new_id()
    created = await driver.call("sessions.update", session)
    assert (created.title, created.metadata, created.message_count) == ("", {}, 0)
    titled = await driver.call("sessions.update", session, title="t", if_revision=created.revision)
    both = await driver.call("sessions.update", session, metadata={"a": 1})
    assert (both.title, both.metadata) == ("t", {"a": 1})
    assert await driver.call("sessions.update", session) == both, "nothing is cleared"
    same = await driver.call("sessions.update", session, title="t")
    assert same.revision == both.revision
    with pytest.raises(AbortedError):
        await driver.call("sessions.update", session, title="x", if_revision=titled.revision)
    with pytest.raises(AlreadyExistsError):
        await driver.call("sessions.update", session, title="x", if_revision=0)
    cleared = await driver.call("sessions.update", session, title="", metadata={})
    assert (cleared.title, cleared.metadata) == ("", {})


async def test_last_messages_are_removed(driver: Driver) -> None:
    session = new_id()
    appended = await driver.call("sessions.append", session, turn("a", "b", "c", "d"))
    result = await driver.call(
        "sessions.truncate", session, drop_last=1, if_revision=appended.session.revision
    )
    assert [m.content for m in result.removed] == ["d"]
    assert (result.session.message_count, result.complete) == (3, True)
    result = await driver.call("sessions.truncate", session, keep_through=appended.saved[0].id)
    assert [m.content for m in result.removed] == ["b", "c"]
    again = await driver.call("sessions.truncate", session, keep_through=appended.saved[0].id)
    assert again.removed == ()
    with pytest.raises(NotFoundError):
        await driver.call("sessions.truncate", session, keep_through="nowhere")
    with pytest.raises(AbortedError):
        await driver.call("sessions.truncate", session, drop_last=1, if_revision=1)
    for count in (-1, 1001):
        with pytest.raises(InvalidArgumentError):
            await driver.call("sessions.truncate", session, drop_last=count)
    last = await driver.call("sessions.truncate", session, drop_last=5)
    assert ([m.content for m in last.removed], last.session.message_count) == (["a"], 0)
    with pytest.raises(NotFoundError):
        await driver.call("sessions.get", session)


async def test_session_is_deleted(driver: Driver) -> None:
    session = new_id()
    messages = [Message("p", "r", f"n{i}", session_id=session) for i in range(1500)]
    await driver.call("bulk_save", messages)
    found = await driver.call("sessions.get", session)
    with pytest.raises(AbortedError):
        await driver.call("sessions.delete", session, if_revision=found.revision + 1)
    assert await driver.call("sessions.delete", session, if_revision=found.revision) == 1500
    assert await driver.all("list", session) == []
    with pytest.raises(NotFoundError):
        await driver.call("sessions.delete", session)
    again = await driver.call("sessions.append", session, turn("a"), if_revision=0)
    assert again.session.revision > found.revision


async def test_sessions_are_listed_by_activity(own_driver: Driver) -> None:
    driver = own_driver
    for number, provider in enumerate(["openai", "anthropic", "openai"]):
        time = START + timedelta(days=number)
        message = Message(provider, "user", f"n{number}", timestamp=time)
        await driver.call("sessions.append", f"s{number}", [message])
    await driver.call("sessions.update", "s1", title="Trip to Porto", metadata={"user": 7})

    async def listed(**conditions: Any) -> list[str]:
        return [s.session_id for s in await driver.all("sessions.list", **conditions)]

    assert await listed() == ["s2", "s1", "s0"]
    assert await listed(page_size=1) == ["s2", "s1", "s0"]
    assert await listed(oldest_first=True) == ["s0", "s1", "s2"]
    assert await listed(provider="openai") == ["s2", "s0"]
    assert await listed(title_prefix="Trip") == await listed(metadata={"user": 7}) == ["s1"]
    day = START + timedelta(days=1)
    assert await listed(start_time=day) == ["s2", "s1"]
    assert await listed(end_time=day) == ["s0"]
    pages = await driver.pages("sessions.list", page_size=2)
    assert [len(page.items) for page in pages] == [2, 1]
    assert await listed(page_token=pages[0].next_page_token) == ["s0"]
    with pytest.raises(InvalidArgumentError, match="page_token"):
        await listed(page_token=pages[0].next_page_token, oldest_first=True)


async def test_guarded_append_survives_a_restart(running_server: ServerProcess) -> None:
    async with AsyncClient(running_server.address) as client:
        result = await client.sessions.append("s", turn("a"), if_revision=0)
        await asyncio.to_thread(running_server.terminate)
        await asyncio.to_thread(running_server.start)
        result = await client.sessions.append(
            "s", turn("b"), if_revision=result.session.revision, timeout=30
        )
        assert result.session.message_count == 2
