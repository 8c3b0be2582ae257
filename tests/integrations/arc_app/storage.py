"""Storage contract of the application."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class StorageBackend(ABC):
    """What the application needs of its storage; every failure is a `StorageError`."""

    @abstractmethod
    async def initialize(self) -> None: ...

    @abstractmethod
    async def save_message(self, message: Any) -> str: ...

    @abstractmethod
    async def get_message_by_id(self, message_id: str) -> Any: ...

    @abstractmethod
    async def get_by_session(self, session_id: str) -> list[Any]: ...

    @abstractmethod
    async def search_messages(
        self, query: str, tags: list[str] | None = None, limit: int = 50
    ) -> list[Any]: ...

    @abstractmethod
    async def save_file(self, file: Any) -> str: ...

    @abstractmethod
    async def get_file_by_id(self, file_id: str) -> Any: ...

    @abstractmethod
    async def health_check(self) -> bool: ...
