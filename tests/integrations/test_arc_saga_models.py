"""Which classes of an application the drop-in can build, and what it says about others."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, datetime
from types import ModuleType
from typing import Annotated, Any, Optional

import pytest
from pydantic import BaseModel, ConfigDict, Field

from sagastore.integrations._arc_saga_models import Models, Record
from sagastore.integrations.arc_saga import SagaStoreStorage
from tests.integrations.arc_app import dataclass_models, exceptions
from tests.integrations.arc_app.dataclass_models import File, Message, MessageRole, Provider

PACKAGE = "tests.integrations.arc_app"
VALUES: dict[str, Any] = {
    "id": "m",
    "provider": "openai",
    "role": "user",
    "content": "hello",
    "tags": ["a"],
    "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
    "metadata": {},
    "session_id": None,
}


@dataclass
class UnionMessage:
    """Enums in unions and annotations; a class without tags and metadata."""

    id: str
    provider: Annotated[Provider | str, "open"]
    role: Optional[MessageRole]  # noqa: UP045 - the older spelling
    content: str
    timestamp: datetime
    computed: str = field(init=False, default="")


class PlainMessage:
    """A class that tells its fields by its constructor."""

    def __init__(
        self, id: str, provider: Provider, role: MessageRole, content: str, timestamp: Any = None
    ) -> None:
        self.values = (id, provider, role, content, timestamp)


class AliasMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str = Field(alias="_id")
    provider: Provider
    role: MessageRole
    content: str
    timestamp: datetime


@dataclass
class Unresolved:
    """An annotation that exists for type checkers only."""

    id: str
    provider: NotImported  # type: ignore[name-defined]  # noqa: F821
    role: str
    content: str
    timestamp: datetime


def record(cls: Any) -> Record:
    return Record(cls, {"provider": Provider, "role": MessageRole})


def classes(**replaced: Any) -> Any:
    names = ("Message", "File", "SearchResult")
    values = {name: getattr(dataclass_models, name) for name in names}
    values["StorageError"] = exceptions.StorageError
    return type("Classes", (), values | replaced)


def with_field(cls: Any, name: str, *default: Any) -> Any:
    if default:
        return make_dataclass("Changed", [(name, str, default[0])], bases=(cls,))
    return make_dataclass("Changed", [(name, str)], bases=(cls,), kw_only=True)


def test_enums_in_unions_are_converted() -> None:
    built = record(UnionMessage).build(VALUES)
    assert (built.provider, built.role) == (Provider.OPENAI, MessageRole.USER)
    assert record(UnionMessage).build(VALUES | {"provider": "mistral"}).provider == "mistral"
    with pytest.raises(ValueError, match=r"UnionMessage\.role cannot be 'tool'"):
        record(UnionMessage).build(VALUES | {"role": "tool"})


def test_fields_are_those_of_the_constructor() -> None:
    built = record(PlainMessage).build(VALUES)
    assert built.values == ("m", Provider.OPENAI, MessageRole.USER, "hello", VALUES["timestamp"])


def test_aliases_of_pydantic_are_used() -> None:
    built = record(AliasMessage).build(VALUES)
    assert built.id == "m"
    assert record(AliasMessage).read(built, "id") == "m"
    assert record(AliasMessage).read(built, "role") == "user"


def test_enum_is_found_by_name_if_the_annotation_cannot_be_resolved() -> None:
    assert record(Unresolved).build(VALUES).provider is Provider.OPENAI


def test_refused_values_name_the_class() -> None:
    with pytest.raises(ValueError, match=r"Message refuses .*: the content must not be empty"):
        record(Message).build(VALUES | {"content": " "})
    with pytest.raises(ValueError, match="AliasMessage refuses the stored values: 1 validation"):
        record(AliasMessage).build(VALUES | {"content": 5})


def test_object_of_another_class_is_named() -> None:
    with pytest.raises(ValueError, match=r"dict has no attribute 'content'; expected a .*Message"):
        record(Message).read({}, "content")


@pytest.mark.parametrize(
    ("models", "text"),
    [
        ("no_such.models", "module no_such.models of ARC SAGA cannot be imported"),
        (f"{PACKAGE}.enums", "enums has no class 'Message'; pass the application's classes"),
        (classes(StorageError=None), "Classes has no exception 'StorageError'"),
        (classes(Message=int), "builtins.int does not tell its fields"),
        (classes(Message=File), "File has no field 'provider', which is needed"),
        (
            classes(Message=with_field(Message, "mood", "good")),
            "Changed.mood is not a field of SagaStore and would not be stored",
        ),
        (classes(Message=with_field(Message, "mood")), "Changed.mood has no default"),
        (classes(SearchResult=with_field(Message, "rank")), "Changed.rank has no default"),
    ],
)
def test_unsuitable_classes_are_refused_at_the_start(models: Any, text: str) -> None:
    with pytest.raises((ImportError, TypeError), match=text):
        SagaStoreStorage(models=models)


def test_default_classes_are_those_of_arc_saga() -> None:
    with pytest.raises(ImportError, match=r"the module arc_saga\.models of ARC SAGA"):
        SagaStoreStorage()


@pytest.mark.parametrize("models", [f"{PACKAGE}.dataclass_models", dataclass_models])
def test_exception_is_found_beside_the_classes(models: str | ModuleType) -> None:
    assert Models(models, ()).error is exceptions.StorageError


def test_fields_can_be_left_out() -> None:
    message = with_field(Message, "mood", "good")
    SagaStoreStorage(models=classes(Message=message), unstored=["mood"])


def test_exception_without_an_operation_gets_the_text() -> None:
    class StorageError(Exception):
        pass

    models = Models(classes(StorageError=StorageError), ())
    assert str(models.failure("why", "save_message")) == "why"


def test_library_does_not_import_the_drop_in() -> None:
    program = """
import sys, sagastore
for name in sagastore.__all__: getattr(sagastore, name)
assert not [name for name in sys.modules if "integrations" in name]
import sagastore.integrations.arc_saga
assert not {"fastapi", "pydantic", "aiosqlite", "arc_saga"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=200)
