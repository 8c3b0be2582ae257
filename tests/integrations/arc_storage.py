"""The drop-in as the application uses it, and the application on both storages."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sagastore.integrations.arc_saga import SagaStoreStorage
from tests.integrations.arc_app import dataclass_models, exceptions, pydantic_models
from tests.integrations.arc_app.api import create_app
from tests.integrations.arc_app.sqlite_storage import SQLiteStorage
from tests.integrations.arc_app.storage import StorageBackend

if TYPE_CHECKING:
    from fastapi import FastAPI

StorageError = exceptions.StorageError

FLAVOURS: dict[str, ModuleType] = {"dataclass": dataclass_models, "pydantic": pydantic_models}


class Storage(SagaStoreStorage, StorageBackend):
    """The drop-in, for an application that checks the class of its storage."""


def dropin(target: str, models: Any = dataclass_models, **options: Any) -> Storage:
    return Storage(target, models=models, **options)


def sqlite_app(path: Path, models: ModuleType = dataclass_models) -> FastAPI:
    return create_app(SQLiteStorage(path, models), models)


def saga_app(storage: Storage, models: ModuleType = dataclass_models) -> FastAPI:
    return create_app(storage, models)
