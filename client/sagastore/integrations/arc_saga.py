"""Storage backend of the ARC SAGA application that keeps its messages in a SagaStore service.

    from sagastore.integrations.arc_saga import SagaStoreStorage

    storage = SagaStoreStorage("127.0.0.1:50051")
    await storage.initialize()

`SagaStoreStorage` has the methods of ARC SAGA's `StorageBackend` and takes the place of
its `SQLiteStorage`. It takes, returns and raises the application's own classes.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple, TypeVar

import sagastore
from sagastore.integrations._arc_saga_models import Models, Record

__all__ = ["SagaStoreStorage"]

T = TypeVar("T")

_DEFAULT_TARGET: Final = "127.0.0.1:50051"
_DEFAULT_MODELS: Final = "arc_saga.models"
_SERVICE: Final = "sagastore.v1.StorageService"
_PAGE: Final = 500
"""Messages per request, and the highest limit of a search, as in ARC SAGA."""
_FAILURES: Final = (sagastore.SagaStoreError, OSError, RuntimeError, TypeError, ValueError)


class _Connection(NamedTuple):
    """What a process needs for calls."""

    client: sagastore.Client
    executor: ThreadPoolExecutor
    pid: int


class SagaStoreStorage:
    """ARC SAGA's `StorageBackend` on a SagaStore service.

    - Any number of tasks, threads and event loops may share one object, at the same
      time or one after the other.
    - An acknowledged save is durable, in every phase of a migration under it.
    - Every failure is the application's `StorageError`, with the cause as `__cause__`.
      `health_check` never fails.
    - It connects on first use, so it can be created before a process forks, and used
      in the child processes. Once used, it does not work after a fork.

    The connections of gRPC belong to one event loop, but an application has several: a
    test client starts one for each request, and each `asyncio.run` another. Calls
    therefore use the blocking client, which runs one loop in a background thread, and
    wait for it in the threads of this object. One client for each loop would open a
    connection for each request of a test client. The threads are not those of
    `asyncio.to_thread`, because these are few (6 on two processors) and shared with
    the application.
    """

    def __init__(
        self,
        target: str | Sequence[str] = _DEFAULT_TARGET,
        *,
        models: Any = _DEFAULT_MODELS,
        tls: sagastore.TLS | bool = False,
        token: str | Callable[[], str] | None = None,
        timeout: float = 10.0,
        health_timeout: float = 2.0,
        retry: sagastore.RetryPolicy | None = None,
        allow_insecure_token: bool = False,
        max_calls: int = 32,
        unstored: Collection[str] = (),
    ) -> None:
        """Inspect the application's classes; connect later.

        Args:
            target: Address of the service, as for `sagastore.Client`.
            models: The application's classes: a module, the name of a module, or an
                object with the attributes `Message`, `File`, `SearchResult` and
                `StorageError`. A module may have `StorageError` in the module
                `exceptions` beside it.
            tls: As for `sagastore.Client`.
            token: As for `sagastore.Client`.
            timeout: Seconds for each call, retries included.
            health_timeout: Seconds after which `health_check` returns False.
            retry: As for `sagastore.Client`.
            allow_insecure_token: As for `sagastore.Client`.
            max_calls: Calls in progress at a time; more wait. One thread for each.
            unstored: Fields of the application's `Message` and `File` that SagaStore
                does not have and that need not be stored.

        Raises:
            ImportError: The module of the classes cannot be imported.
            TypeError: A class is missing or has a field that cannot be stored or
                filled; the error names class and field.
        """
        self._models = Models(models, unstored)
        self._naive_messages = self._models.message.creates_naive_times("timestamp")
        self._naive_files = self._models.file.creates_naive_times("uploaded_at")
        self._options: dict[str, Any] = {
            "target": target,
            "tls": tls,
            "token": token,
            "timeout": timeout,
            "retry": retry,
            "allow_insecure_token": allow_insecure_token,
        }
        self._health_timeout = health_timeout
        self._max_calls = max_calls
        self._connection: _Connection | None = None
        self._lock = threading.Lock()

    async def initialize(self) -> None:
        """Check that the service answers; wait for it for up to `timeout` seconds.

        Can be called more than once. Nothing is created: the service has its tables.

        Raises:
            StorageError: The service does not answer or refuses the caller.
        """
        # A read, because it is retried and needs the permissions of later calls.
        await self._run("initialize", lambda client: client.list("", page_size=1).first())

    async def save_message(self, message: Any) -> str:
        """Store a new message durably and return its id.

        A call whose response was lost is repeated safely: the client finds out whether
        its own first attempt has stored the message.

        Args:
            message: A `Message` of the application. A time without a time zone is UTC.

        Raises:
            StorageError: The id exists, the message is invalid, or the service is
                unavailable.
        """

        def save(client: sagastore.Client) -> str:
            stored = self._to_message(message)
            try:
                return client.save(stored, if_revision=0).id
            except sagastore.AlreadyExistsError as exc:
                text = f"a message with the id {stored.id!r} exists"
                raise self._models.failure(text, "save_message") from exc

        return await self._run("save_message", save)

    async def get_message_by_id(self, message_id: str) -> Any:
        """Return the message with an id, or None.

        Raises:
            StorageError: The service is unavailable, or the application's class cannot
                hold the stored values.
        """

        def get(client: sagastore.Client) -> Any:
            try:
                return self._from_message(client.get(message_id))
            except (sagastore.NotFoundError, sagastore.InvalidArgumentError):
                return None  # An invalid id cannot be stored.

        return await self._run("get_message_by_id", get)

    async def get_by_session(self, session_id: str) -> list[Any]:
        """Return all messages of a session by time; equal times in the order of saving.

        Raises:
            StorageError: The service is unavailable, or the application's class cannot
                hold the stored values.
        """

        def read(client: sagastore.Client) -> list[Any]:
            try:
                messages = list(client.list(session_id, page_size=_PAGE))
            except sagastore.InvalidArgumentError:
                return []  # An invalid session id cannot be stored.
            return [self._from_message(message) for message in messages]

        return await self._run("get_by_session", read)

    async def search_messages(
        self, query: str, tags: list[str] | None = None, limit: int = 50
    ) -> list[Any]:
        """Return the messages that match, most relevant first.

        Args:
            query: Words that must all be in the content; `"a phrase"`; `prefix*`; `AND`,
                `OR` and `NOT` with parentheses. Any text is valid. An empty query
                returns the newest messages first.
            tags: Tags that the message must have; None or empty for any.
            limit: Most results; above 500 or negative means 500.

        Returns:
            Results of the application's class, with the fields that it has of
            `entity_id`, `entity_type` ("message"), `entity` or `message` (the
            `Message`), `content`, `tags`, `timestamp`, `relevance_score`, `score` or
            `relevance` (greater is more relevant; 0 for an empty query), `snippet`,
            and those of the message.

        Raises:
            StorageError: The service is unavailable, an argument is invalid, or the
                application's class cannot hold the stored values.
        """
        most = _PAGE if limit < 0 else min(limit, _PAGE)

        def search(client: sagastore.Client) -> list[Any]:
            found = client.search(query, tags=tags or (), page_size=most)
            return [self._from_result(result) for result in found.limit(most)]

        return await self._run("search_messages", search)

    async def save_file(self, file: Any) -> str:
        """Store the record of a new file durably and return its id.

        Args:
            file: A `File` of the application. A time without a time zone is UTC.

        Raises:
            StorageError: The id exists, the record is invalid, or the service is
                unavailable.
        """

        def save(client: sagastore.Client) -> str:
            stored = self._to_file(file)
            try:
                return client.files.save(stored, if_revision=0).id
            except sagastore.AlreadyExistsError as exc:
                text = f"a file with the id {stored.id!r} exists"
                raise self._models.failure(text, "save_file") from exc

        return await self._run("save_file", save)

    async def get_file_by_id(self, file_id: str) -> Any:
        """Return the record of the file with an id, or None.

        Raises:
            StorageError: The service is unavailable, or the application's class cannot
                hold the stored values.
        """

        def get(client: sagastore.Client) -> Any:
            try:
                return self._from_file(client.files.get(file_id))
            except (sagastore.NotFoundError, sagastore.InvalidArgumentError):
                return None  # An invalid id cannot be stored.

        return await self._run("get_file_by_id", get)

    async def health_check(self) -> bool:
        """Return whether the service answers within `health_timeout` and serves messages."""

        def check(client: sagastore.Client) -> bool:
            status = client.health(_SERVICE, timeout=self._health_timeout)
            return status is sagastore.ServingStatus.SERVING

        try:
            # The bound includes the wait for a thread, if all of them are in calls.
            return await asyncio.wait_for(self._run("health_check", check), self._health_timeout)
        except (TimeoutError, self._models.error):
            return False

    async def close(self) -> None:
        """Close the connections. Calls in progress fail; a later call connects again."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None and connection.pid == os.getpid():
            await asyncio.to_thread(connection.client.close)
            connection.executor.shutdown(wait=False)

    # ------------------------------------------------------------------ calls

    async def _run(self, operation: str, work: Callable[[sagastore.Client], T]) -> T:
        """Run a call in a thread; every failure becomes the application's exception."""
        try:
            client, executor, _ = self._connected()
            # With the context, so that the call belongs to the caller's trace.
            run = contextvars.copy_context().run
            return await asyncio.get_running_loop().run_in_executor(executor, run, work, client)
        except self._models.error:
            raise
        except _FAILURES as exc:
            raise self._models.failure(str(exc), operation) from exc

    def _connected(self) -> _Connection:
        with self._lock:
            if self._connection is None:
                self._connection = _Connection(
                    sagastore.Client(**self._options),
                    ThreadPoolExecutor(self._max_calls, "sagastore-arc-saga"),
                    os.getpid(),
                )
            elif self._connection.pid != os.getpid():
                # The threads of the executor do not exist here, so a call would never end.
                raise RuntimeError(
                    "this storage was used before the process forked, and gRPC does not work "
                    "after a fork; use it in the child process only"
                )
            return self._connection

    # ------------------------------------------------------------------ conversion

    def _to_message(self, message: Any) -> sagastore.Message:
        record = self._models.message
        return sagastore.Message(
            record.read(message, "provider"),
            record.read(message, "role"),
            record.read(message, "content"),
            id=record.read(message, "id") or "",
            tags=_tags(record, message),
            timestamp=_aware(record.read(message, "timestamp")),
            metadata=_metadata(record, message),
            session_id=record.read(message, "session_id"),
        )

    def _from_message(self, message: sagastore.Message) -> Any:
        return self._models.message.build(self._message_values(message))

    def _message_values(self, message: sagastore.Message) -> dict[str, Any]:
        return {
            "id": message.id,
            "provider": message.provider,
            "role": message.role,
            "content": message.content,
            "tags": list(message.tags),
            "timestamp": _returned(message.timestamp, self._naive_messages),
            "metadata": _plain(message.metadata),
            "session_id": message.session_id,
            "created_at": _returned(message.created_at, self._naive_messages),
        }

    def _from_result(self, result: sagastore.SearchResult) -> Any:
        record = self._models.result
        values = self._message_values(result.message) | {
            "entity_id": result.message.id,
            "entity_type": "message",
            "relevance_score": result.score,
            "relevance": result.score,
            "score": result.score,
            "snippet": result.highlight("", ""),
        }
        for name in ("entity", "message"):
            if name in record:
                values[name] = self._from_message(result.message)
        return record.build(values)

    def _to_file(self, file: Any) -> sagastore.File:
        record = self._models.file
        return sagastore.File(
            record.read(file, "filename"),
            record.read(file, "filepath"),
            record.read(file, "file_type"),
            id=record.read(file, "id") or "",
            extracted_text=record.read(file, "extracted_text") or "",
            tags=_tags(record, file),
            file_size=record.read(file, "file_size") or 0,
            uploaded_at=_aware(record.read(file, "uploaded_at")),
            metadata=_metadata(record, file),
        )

    def _from_file(self, file: sagastore.File) -> Any:
        return self._models.file.build(
            {
                "id": file.id,
                "filename": file.filename,
                "filepath": file.filepath,
                "file_type": file.file_type,
                "extracted_text": file.extracted_text,
                "tags": list(file.tags),
                "file_size": file.file_size,
                "uploaded_at": _returned(file.uploaded_at, self._naive_files),
                "metadata": _plain(file.metadata),
                "created_at": _returned(file.created_at, self._naive_files),
            }
        )


def _tags(record: Record, instance: Any) -> list[str]:
    return list(record.read(instance, "tags") or ())


def _metadata(record: Record, instance: Any) -> Any:
    """Return the metadata as JSON values, as ARC SAGA's SQLite class stores them."""
    return json.loads(json.dumps(record.read(instance, "metadata") or {}))


def _aware(time: datetime | None) -> datetime | None:
    """Return a time of the application with a time zone; without one it is UTC."""
    if time is None or time.utcoffset() is not None:
        return time
    return time.replace(tzinfo=UTC)


def _returned(time: datetime | None, naive: bool) -> datetime | None:
    """Return a stored time, which is in UTC, as the application creates its own."""
    return time.replace(tzinfo=None) if time is not None and naive else time


def _plain(value: Any) -> Any:
    """Return JSON values with the numbers that `json.loads` returns: no Decimal."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value
