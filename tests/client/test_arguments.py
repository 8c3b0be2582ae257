"""Every argument of every public method: a wrong value is one line that names the argument."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagastore import (
    TLS,
    ArgumentTypeError,
    AsyncClient,
    Client,
    File,
    InvalidArgumentError,
    Message,
    RetryPolicy,
    SagaStoreError,
    TokenFile,
)
from sagastore._arguments import checked

MESSAGE = Message("openai", "user", "hello")


class Thing:
    """An object that no argument accepts."""


WRONG: dict[str, list[Any]] = {
    "str": [None, 5, b"x", ["x"], Thing(), "\ud800"],
    "str | None": [5, b"x", ["x"], Thing(), "\ud800"],
    "Iterable[str]": [None, 5, "x", b"x", {"a": 1}, [5], [None], ["a", b"b"], ["\ud800"], Thing()],
    "int": [None, "5", 1.5, True, [5], Thing(), 2**63],
    "int | None": ["5", 1.5, True, [5], Thing(), 2**63],
    "bool": [None, 1, 0, "yes", Thing()],
    "bool | None": [1, 0, "yes", Thing()],
    "float": [None, "5", 0, -1, math.nan, True, Thing()],
    "float | None": ["5", 0, -1, math.nan, True, Thing()],
    "datetime | None": [5, "2026-01-01", datetime(2026, 1, 1), Thing()],  # noqa: DTZ001
    "Mapping[str, Any] | None": [5, "x", [1], {1: 2}, {"a": Thing()}, {"a": math.nan}, Thing()],
    "Message": [None, 5, "x", {}, MESSAGE.to_json(), File("a", "b", "c"), Thing()],
    "Iterable[Message]": [None, 5, "x", b"x", {}, MESSAGE, Thing()],
    "File": [None, 5, "x", {}, MESSAGE, Thing()],
    "Durability | str": [None, 5, "newest", ["both"], "unknown", "", Thing()],
    "OnConflict | str": [None, 5, "newest", ["skip"], "unknown", "", Thing()],
    "Order | str": [None, 5, "newset", ["newest"], "unknown", "", Thing()],
    "Phase | str": [None, 55, "newest", ["backfill"], "unknown", "", Thing()],
    "Reads | str": [None, 5, "newest", ["session"], "unknown", "", Thing()],
    "Consistency | str | None": [5, b"x", ["latest"], "newest", "session", "x" * 600, Thing()],
    "Callable[[BulkProgress], object] | None": [5, "x", Thing()],
    "str | Sequence[str]": [None, 5, b"x", [5], [None], [], "", "a b", ["a:0"], Thing()],
    "TLS | bool": [None, 5, "ca.pem", Thing()],
    "Token | None": [5, b"x", ["x"], "two words", Thing()],
    "RetryPolicy | None": [5, {}, RetryPolicy, Thing()],
}
WRONG["Iterable[Message] | AsyncIterable[Message]"] = WRONG["Iterable[Message]"]

MORE: dict[str, list[Any]] = {
    "count": [-1],
    "max_in_flight": [0, -1],
    "position": ["latest", "any_replica", "x" * 19, " " * 28, "é" * 28],
}
"""Further wrong values of single parameters."""

REQUIRED: dict[str, Any] = {
    "id": "x",
    "ids": ["x"],
    "message": MESSAGE,
    "messages": [MESSAGE],
    "file": File("a", "b", "c"),
    "session_id": "s",
    "phase": "backfill",
    "count": 5,
    "position": "",
    "target": "127.0.0.1:1",
}
"""Valid values of the other parameters."""


class Call(NamedTuple):
    """A public method with a wrong value for one of its parameters."""

    group: str
    method: str
    parameter: str
    value: Any


def methods() -> Iterator[tuple[str, str, Callable[..., Any]]]:
    client = AsyncClient("127.0.0.1:1")
    groups = {"": client, "sessions": client.sessions, "files": client.files}
    groups |= {"migration": client.migration, "pager": client.list("s")}
    for group, thing in groups.items():
        for name in dir(type(thing)):
            method = inspect.getattr_static(thing, name)
            if not name.startswith("_") and inspect.isfunction(method):
                yield group, name, method


def calls() -> Iterator[Call]:
    yield from (
        Call("", "__init__", parameter, value)
        for parameter, kind in inspect.get_annotations(vars(AsyncClient)["__init__"]).items()
        if parameter != "return"
        for value in WRONG[kind]
    )
    for group, name, method in methods():
        for parameter, kind in inspect.get_annotations(method).items():
            if parameter != "return":
                for value in [*WRONG[kind], *MORE.get(parameter, ())]:
                    yield Call(group, name, parameter, value)


CALLS = [call for call in calls() if not (call.method == "page" and call.value is None)]


@pytest.fixture
async def address() -> AsyncIterator[tuple[str, list[Any]]]:
    """An address and the connections that it got."""
    connections: list[Any] = []

    def accept(reader: Any, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
    server.close()


def prepared(method: Callable[..., Any], call: Call) -> dict[str, Any]:
    parameters = inspect.signature(method).parameters.values()
    values = {p.name: REQUIRED[p.name] for p in parameters if p.default is p.empty}
    return values | {call.parameter: call.value}


def target_of(client: AsyncClient | Client, group: str) -> Any:
    if group == "pager":
        return client.list("s")
    return getattr(client, group) if group else client


async def drive(client: AsyncClient, call: Call) -> None:
    if call.method == "__init__":
        AsyncClient(**{call.parameter: call.value})
        return
    method = getattr(target_of(client, call.group), call.method)
    result = method(**prepared(method, call))
    if inspect.isawaitable(result):
        await result
    elif result is not None:
        async for _ in result:
            break


def drive_blocking(client: Client, call: Call) -> None:
    if call.method == "__init__":
        Client(**{call.parameter: call.value})
        return
    method = getattr(target_of(client, call.group), call.method)
    result = method(**prepared(method, call))
    for _ in result:
        break


def check(call: Call, error: InvalidArgumentError) -> None:
    line = str(error)
    assert line.startswith(call.parameter) or "exactly one of" in line, call
    assert "\n" not in line
    assert error.violations[0].field in line
    assert "object at 0x" not in line
    assert error.code == "INVALID_ARGUMENT"


async def test_wrong_argument_is_named_before_anything_is_sent(
    address: tuple[str, list[Any]],
) -> None:
    target, connections = address
    wrong = []
    async with AsyncClient(target, timeout=1) as client:
        for call in CALLS:
            with pytest.raises(InvalidArgumentError) as caught:
                await drive(client, call)
            check(call, caught.value)
            wrong.append(call)
    assert len(wrong) == len(CALLS) > 500
    assert not connections


async def test_wrong_argument_of_the_blocking_client_is_named(
    address: tuple[str, list[Any]],
) -> None:
    target, connections = address

    def run() -> None:
        with Client(target, timeout=1) as client:
            for call in CALLS:
                with pytest.raises(InvalidArgumentError) as caught:
                    drive_blocking(client, call)
                check(call, caught.value)

    await asyncio.to_thread(run)
    assert not connections


def shade(colour: Call) -> None:
    """Has an annotation that no public method has."""


def test_every_public_method_is_checked() -> None:
    """A new method or parameter is covered from its first line."""
    unchecked = [
        f"{group}.{name}"
        for group, name, method in methods()
        if len(inspect.signature(method).parameters) > 1 and not hasattr(method, "__wrapped__")
    ]
    assert unchecked == []
    with pytest.raises(TypeError, match="no check for colour: Call"):
        checked(shade)


TEXTS = {"provider": "a", "role": "b", "content": "c"}
NAMES = {"filename": "a", "filepath": "b", "file_type": "c"}


@pytest.mark.parametrize(
    ("kind", "values", "line"),
    [
        (Message, TEXTS | {"tags": None}, "tags: expected several strings, got None"),
        (Message, TEXTS | {"tags": 5}, "tags: expected several strings, got int"),
        (Message, TEXTS | {"tags": "x"}, "tags: expected several strings, got the one string 'x'"),
        (Message, TEXTS | {"timestamp": 5}, "timestamp: expected a datetime, got int"),
        (Message, TEXTS | {"metadata": 5}, "metadata: expected a mapping, got int"),
        (Message, TEXTS | {"revision": "1"}, "revision: expected an int, got str"),
        (Message, TEXTS | {"sequence": None}, "sequence: expected an int, got None"),
        (Message.from_json, {"text": 5}, "text: expected a str or bytes, got int"),
        (File, NAMES | {"tags": None}, "tags: expected several strings, got None"),
        (File, NAMES | {"file_size": "1"}, "file_size: expected an int, got str"),
        (File, NAMES | {"metadata": []}, "metadata: expected a mapping, got list"),
        (TLS, {"ca": 5}, "ca: expected PEM data (bytes or str) or a path, got int"),
        (TLS, {"cert": "c"}, "cert and key belong together; give both or neither"),
        (TLS, {"server_name": b"x"}, "server_name: expected a str, got bytes"),
        (TokenFile, {"path": 5}, "path: expected a path, got int"),
        (RetryPolicy, {"max_attempts": "3"}, "max_attempts: expected an int, got str"),
        (RetryPolicy, {"max_attempts": 0}, "max_attempts must be at least 1, not 0"),
        (RetryPolicy, {"max_backoff": None}, "max_backoff: expected a number, got None"),
        (RetryPolicy, {"multiplier": 0.5}, "multiplier must be finite and at least 1, not 0.5"),
    ],
)
def test_wrong_value_of_a_constructor_is_named(
    kind: Any, values: dict[str, Any], line: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        kind(**values)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"content": None}, "content: expected a str, got None"),
        ({"content": b"bytes"}, "content: expected a str, got bytes"),
        ({"provider": None}, "provider: expected a str, got None"),
        ({"role": ["user"]}, "role: expected a str, got list"),
        ({"id": b"x"}, "id: expected a str, got bytes"),
        ({"session_id": b"x"}, "session_id: expected a str, got bytes"),
        ({"tags": [b"x"]}, "tags[0]: expected a str, got bytes"),
        ({"metadata": {"a": Thing()}}, "metadata.a: Thing has no JSON form"),
    ],
)
async def test_wrong_text_of_a_message_is_named(
    address: tuple[str, list[Any]], values: dict[str, Any], line: str
) -> None:
    target, connections = address
    message = Message(**({"provider": "a", "role": "b", "content": "c"} | values))
    async with AsyncClient(target, timeout=1) as client:
        with pytest.raises(InvalidArgumentError) as caught:
            await client.save(message)
        assert str(caught.value).startswith(line.partition(".")[0].partition(" Thing")[0])
        with pytest.raises(InvalidArgumentError) as caught:
            await client.sessions.append("s", [message])
        assert str(caught.value).startswith(f"messages[0].{line.partition(':')[0].split('.')[0]}")
    assert not connections


async def test_item_that_is_no_message_is_named() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        for items in ([MESSAGE, {}], iter([MESSAGE, {}])):
            with pytest.raises(ArgumentTypeError, match=r"^messages\[1\]: expected a Message, got"):
                await client.sessions.append("s", items)  # type: ignore[arg-type]


async def test_token_function_that_returns_no_str_is_named() -> None:
    async with AsyncClient("127.0.0.1:1", token=lambda: 5) as client:  # type: ignore[arg-type]
        with pytest.raises(ArgumentTypeError, match=r"^token: expected a str, got int$"):
            await client.get("x")


def test_wrong_type_is_also_a_type_error() -> None:
    with pytest.raises(TypeError):
        Client(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="newset"):
        AsyncClient("127.0.0.1:1").search(order="newset")


@settings(max_examples=200, deadline=None)
@given(
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=5)
    | st.text(max_size=5)
    | st.lists(st.none() | st.text(max_size=3) | st.integers(), max_size=3)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    index=st.integers(0, len(CALLS) - 1),
)
def test_any_value_is_accepted_or_named(value: Any, index: int) -> None:
    call = CALLS[index]._replace(value=value)

    async def run() -> SagaStoreError | None:
        # Without retries: an accepted value is a call, which fails.
        once = RetryPolicy(max_attempts=1)
        try:
            async with AsyncClient("127.0.0.1:1", retry=once, timeout=1) as client:
                await drive(client, call)
        except SagaStoreError as exc:
            return exc
        return None

    error = asyncio.run(run())
    if isinstance(error, InvalidArgumentError):
        check(call, error)
