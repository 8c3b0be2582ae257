"""FileWrites: the writes of ``FileBackend`` for a store that applies ``Changes`` in groups."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import TypeVar

from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.files import NewFile
from sagastore_server.storage.model import SaveResult

T = TypeVar("T")


class FileWrites(StorageBackend):
    """Implements the writes of file records by groups of ``Changes``."""

    @abc.abstractmethod
    async def _change_files(self, file_ids: Sequence[str], apply: Callable[[Changes], T]) -> T:
        """Apply a write that concerns file records, and return its result."""

    async def save_file(
        self,
        draft: NewFile,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """See the contract."""
        del everywhere_within  # One store is every store.
        return await self._change_files(
            (draft.id,), lambda changes: changes.files.save(draft, if_revision)
        )

    async def delete_file(self, file_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        await self._change_files(
            (file_id,), lambda changes: changes.files.delete(file_id, if_revision)
        )
