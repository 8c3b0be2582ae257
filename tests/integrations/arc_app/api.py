"""HTTP interface of the application, on any `StorageBackend`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from types import ModuleType
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from tests.integrations.arc_app.exceptions import StorageError
from tests.integrations.arc_app.storage import StorageBackend

Document = Annotated[dict[str, Any], Body()]


def create_app(storage: StorageBackend, models: ModuleType) -> FastAPI:
    """Return the application; the storage is the only thing that differs between two."""
    assert isinstance(storage, StorageBackend)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await storage.initialize()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(StorageError)
    async def storage_failed(_: Request, error: StorageError) -> JSONResponse:
        return JSONResponse({"operation": error.operation, "detail": str(error)}, 500)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"healthy": await storage.health_check()}

    _serve_messages(app, storage, models)
    _serve_files(app, storage, models)
    return app


def _serve_messages(app: FastAPI, storage: StorageBackend, models: ModuleType) -> None:
    @app.post("/messages", status_code=201)
    async def capture(document: Document) -> dict[str, Any]:
        values = document | {
            "provider": models.Provider(document["provider"]),
            "role": models.MessageRole(document["role"]),
        }
        if "timestamp" in values:
            values["timestamp"] = datetime.fromisoformat(values["timestamp"])
        return {"message_id": await storage.save_message(models.Message(**values))}

    @app.get("/messages/{message_id}")
    async def message(message_id: str) -> dict[str, Any]:
        return _message(_found(await storage.get_message_by_id(message_id)))

    @app.get("/threads/{thread_id}")
    async def thread(thread_id: str) -> dict[str, Any]:
        messages = await storage.get_by_session(thread_id)
        return {"messages": [_message(one) for one in messages], "count": len(messages)}

    @app.post("/search")
    async def search(document: Document) -> dict[str, Any]:
        results = await storage.search_messages(**document)
        return {"results": [_result(one) for one in results]}


def _serve_files(app: FastAPI, storage: StorageBackend, models: ModuleType) -> None:
    @app.post("/files", status_code=201)
    async def attach(document: Document) -> dict[str, Any]:
        values = document | {"file_type": models.FileType(document["file_type"])}
        if "uploaded_at" in values:
            values["uploaded_at"] = datetime.fromisoformat(values["uploaded_at"])
        return {"file_id": await storage.save_file(models.File(**values))}

    @app.get("/files/{file_id}")
    async def file(file_id: str) -> dict[str, Any]:
        return _file(_found(await storage.get_file_by_id(file_id)))


def _found(thing: Any) -> Any:
    if thing is None:
        raise HTTPException(404, "not found")
    return thing


def _message(message: Any) -> dict[str, Any]:
    return {
        "id": message.id,
        "provider": message.provider.value,
        "role": message.role.value,
        "content": message.content,
        "tags": message.tags,
        "timestamp": message.timestamp.isoformat(),
        "metadata": message.metadata,
        "session_id": message.session_id,
    }


def _result(result: Any) -> dict[str, Any]:
    if hasattr(result, "entity"):
        return {"message": _message(result.entity), "score": result.score}
    return {
        "id": result.entity_id,
        "type": result.entity_type,
        "content": result.content,
        "tags": result.tags,
        "timestamp": result.timestamp.isoformat(),
        "score": result.relevance_score,
    }


def _file(file: Any) -> dict[str, Any]:
    return {
        "id": file.id,
        "filename": file.filename,
        "filepath": file.filepath,
        "file_type": file.file_type.value,
        "extracted_text": file.extracted_text,
        "tags": file.tags,
        "file_size": file.file_size,
        "uploaded_at": file.uploaded_at.isoformat(),
        "metadata": file.metadata,
    }
