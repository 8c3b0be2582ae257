"""The blocking client mirrors the asynchronous client; tools/async_to_sync.py generates it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import sagastore
from tools import async_to_sync

PAIRS = [
    (sagastore.AsyncClient, sagastore.Client),
    (sagastore.AsyncSessionClient, sagastore.SessionClient),
    (sagastore.AsyncFileClient, sagastore.FileClient),
    (sagastore.AsyncMigrationClient, sagastore.MigrationClient),
    (sagastore.AsyncPager, sagastore.Pager),
]
SPECIAL = {"__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__"}
BLOCKING_TYPES = [
    (r"AsyncGenerator\[(.*), None\]", r"Generator[\1, None, None]"),
    (r"Iterable\[(\w+)\] \| AsyncIterable\[\1\]", r"Iterable[\1]"),
    (r"Awaitable\[(.*)\]\]", r"\1]"),
    (r"\bAsync(?=Client|SessionClient|FileClient|MigrationClient|Pager)", ""),
]


def public_methods(kind: type) -> dict[str, Callable[..., Any]]:
    """Return the public methods of a class, by the name that they have when blocking.

    A property counts as the method that returns its value.
    """
    names = [name for name in dir(kind) if not name.startswith("_")]
    names += [name for pair in SPECIAL.items() for name in pair if hasattr(kind, name)]
    found = {SPECIAL.get(name, name): getattr(kind, name) for name in names}
    return {name: getattr(method, "fget", method) for name, method in found.items()}


def blocking_type(annotation: str) -> str:
    for pattern, replacement in BLOCKING_TYPES:
        annotation = re.sub(pattern, replacement, annotation)
    return annotation


def described(method: Callable[..., Any]) -> list[tuple[str, Any, Any, str]]:
    """Return name, kind, default and type of the parameters, and the type of the result."""
    signature = inspect.signature(method)
    parameters = [
        (p.name, p.kind, p.default, blocking_type(str(p.annotation)))
        for p in signature.parameters.values()
    ]
    return [*parameters, ("return", None, None, blocking_type(str(signature.return_annotation)))]


METHODS = [
    pytest.param(methods, public_methods(blocking), name, id=f"{blocking.__name__}.{name}")
    for asynchronous, blocking in PAIRS
    for methods in [public_methods(asynchronous)]
    for name in methods
]


@pytest.mark.parametrize(("asynchronous", "blocking"), PAIRS)
def test_classes_have_the_same_methods(asynchronous: type, blocking: type) -> None:
    assert public_methods(asynchronous).keys() == public_methods(blocking).keys()
    assert blocking.__doc__


@pytest.mark.parametrize(("asynchronous", "blocking", "name"), METHODS)
def test_methods_have_the_same_signature(
    asynchronous: dict[str, Callable[..., Any]],
    blocking: dict[str, Callable[..., Any]],
    name: str,
) -> None:
    assert described(blocking[name]) == described(asynchronous[name])


@pytest.mark.parametrize(("asynchronous", "blocking", "name"), METHODS)
def test_methods_have_the_same_docstring(
    asynchronous: dict[str, Callable[..., Any]],
    blocking: dict[str, Callable[..., Any]],
    name: str,
) -> None:
    expected = inspect.getdoc(asynchronous[name])
    assert expected
    assert inspect.getdoc(blocking[name]) == inspect.cleandoc(
        async_to_sync.translated_text(asynchronous[name].__doc__ or "")
    )


def test_constructors_of_the_clients_are_the_same() -> None:
    asynchronous = vars(sagastore.AsyncClient)["__init__"]
    blocking = vars(sagastore.Client)["__init__"]
    assert described(blocking) == described(asynchronous)
    assert blocking.__doc__ == asynchronous.__doc__


@pytest.mark.parametrize("target", async_to_sync.TARGETS, ids=lambda target: target.module)
def test_generated_module_is_up_to_date(target: async_to_sync.Target) -> None:
    assert target.path.read_text(encoding="utf-8") == async_to_sync.generate(target)
