"""The asyncio client's operations on file records."""

# Timeouts are sent to the server or span several calls; `asyncio.timeout` cannot replace them.
# ruff: noqa: ASYNC109

from __future__ import annotations

from collections.abc import Iterable

from sagastore import _convert_files as convert
from sagastore._arguments import checked
from sagastore._async_paging import AsyncPager
from sagastore._async_reads import chosen, with_token
from sagastore._call import Caller, History
from sagastore._consistency import Consistency
from sagastore._convert import member, naming
from sagastore._enums import Durability
from sagastore._file_model import File, FileSaveResult
from sagastore._ids import new_id
from sagastore._model import Page
from sagastore._retry import Deadline
from sagastore.errors import AbortedError, AlreadyExistsError, NotFoundError
from sagastore.v1 import file_pb2 as pb
from sagastore.v1 import storage_pb2

__all__ = ["AsyncFileClient"]


class AsyncFileClient:
    """Stores and lists records about files; available as `AsyncClient.files`.

    Besides the errors that a method documents, each method can raise
    `UnavailableError`, `ResourceExhaustedError`, `DeadlineExceededError`,
    `UnauthenticatedError`, `PermissionDeniedError` and `InternalError`.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    @checked
    async def save(
        self,
        file: File,
        *,
        if_revision: int | None = None,
        durability: Durability | str = Durability.PRIMARY,
        timeout: float | None = None,
    ) -> FileSaveResult:
        """Store one file record durably.

        Idempotent by id, as `AsyncClient.save` is: saving the same record again
        changes nothing, saving a different one replaces the stored record. The
        client assigns a missing id before the first attempt, so a retry cannot
        store the record twice.

        With `if_revision`, an attempt whose response was lost may already have
        changed the revision. If the server refuses a retry, the client
        therefore reads the record back. If it equals the record to save, the
        save has succeeded, even if another client stored the same values.

        Args:
            file: The record; `created_at` and `revision` are ignored.
            if_revision: 0 requires that the id is new. Another value must be
                the stored revision. None replaces any stored record.
            durability: The stores that must have the write before the call
                returns.
            timeout: Total seconds; None for the client's timeout.

        Returns:
            The stored id and revision. `created` can be False for a new record
            if the caller chose the id and the response to the first attempt was
            lost.

        Raises:
            InvalidArgumentError: The record is invalid; `violations` lists
                every problem.
            AlreadyExistsError: `if_revision` is 0 and the id exists.
            AbortedError: `if_revision` is not the stored revision.
            UnavailableError: Also if `Durability.BOTH` is not reached in time;
                the write then remains in the store that has it.
        """
        request = pb.SaveFileRequest(
            file=convert.file_to_pb(file, file.id or new_id()),
            durability=storage_pb2.Durability.ValueType(
                member(Durability, durability, "durability")
            ),
        )
        if if_revision is not None:
            with naming("if_revision"):
                request.if_revision = if_revision
        deadline = self._caller.deadline(timeout)
        history = History()
        try:
            response = await self._save(request, deadline, history)
        except (AlreadyExistsError, AbortedError):
            confirmed = await self._own_write(request, deadline) if history.uncertain else None
            if confirmed is None:
                raise
            return convert.file_save_result(confirmed, created=if_revision == 0)
        return convert.file_save_result(response, created=None if file.id else True)

    async def _save(
        self, request: pb.SaveFileRequest, deadline: Deadline, history: History | None = None
    ) -> pb.SaveFileResponse:
        return await self._caller.unary(
            "SaveFile", lambda e: e.files.SaveFile, request, deadline, history=history
        )

    async def _own_write(
        self, request: pb.SaveFileRequest, deadline: Deadline
    ) -> pb.SaveFileResponse | None:
        """Return the result of a conditional save whose response was lost, or None.

        Saving the stored record again under its revision changes nothing and returns the
        stores in which it is durable. The read sees the latest state: a replica may be older
        than the refusal.
        """
        try:
            stored = await self._get(request.file.id, deadline, Consistency.LATEST)
            if not convert.same_file(request.file, stored):
                return None
            again = pb.SaveFileRequest(
                file=request.file, if_revision=stored.revision, durability=request.durability
            )
            return await self._save(again, deadline)
        except (NotFoundError, AbortedError):
            return None

    @checked
    async def get(
        self,
        id: str,
        *,
        consistency: Consistency | str | None = None,
        timeout: float | None = None,
    ) -> File:
        """Read one file record.

        Args:
            id: The record's id.
            consistency: Which state the read must see; None: as `reads` of the client.
            timeout: Total seconds; None for the client's timeout.

        Raises:
            NotFoundError: No record has the id.
            InvalidArgumentError: The id is empty or too long.
        """
        found = await self._get(id, self._caller.deadline(timeout), chosen(consistency))
        return convert.file_from_pb(found)

    async def _get(self, id: str, deadline: Deadline, consistency: Consistency | None) -> pb.File:
        response = await self._caller.read(
            "GetFile", lambda e: e.files.GetFile, pb.GetFileRequest(id=id), deadline, consistency
        )
        return response.file

    @checked
    def list(
        self,
        tags: Iterable[str] = (),
        *,
        page_size: int = 0,
        page_token: str = "",
        consistency: Consistency | str | None = None,
        timeout: float | None = None,
    ) -> AsyncPager[File]:
        """List file records, newest first: by the time of upload, then by id.

        Args:
            tags: Tags that the record must have.
            page_size: Records per page: 0 means 50, above 500 means 500.
            page_token: Where to start: the `next_page_token` of a page.
            consistency: Which state each page must see; None: as `reads` of the client.
            timeout: Seconds for each page; None for the client's timeout.

        Raises:
            InvalidArgumentError: A tag is too long, the page size is negative,
                or the token belongs to another request.
        """
        request = pb.ListFilesRequest(page_size=page_size, tags=tags)

        async def fetch(token: str) -> Page[File]:
            response = await self._caller.read(
                "ListFiles",
                lambda e: e.files.ListFiles,
                with_token(request, token),
                self._caller.deadline(timeout),
                chosen(consistency),
            )
            return convert.file_page(response)

        return AsyncPager(fetch, page_token)

    @checked
    async def delete(
        self, id: str, *, if_revision: int | None = None, timeout: float | None = None
    ) -> None:
        """Delete one file record.

        An attempt whose response was lost may have deleted the record. If a
        retry does not find it, the deletion has therefore succeeded.

        Args:
            id: The record's id.
            if_revision: Must be the stored revision; None for any.
            timeout: Total seconds; None for the client's timeout.

        Raises:
            NotFoundError: No record has the id.
            AbortedError: `if_revision` is not the stored revision.
            InvalidArgumentError: The id is empty or too long, or `if_revision`
                is not greater than 0.
        """
        request = pb.DeleteFileRequest(id=id, if_revision=if_revision)
        history = History()
        try:
            await self._caller.unary(
                "DeleteFile",
                lambda e: e.files.DeleteFile,
                request,
                self._caller.deadline(timeout),
                history=history,
            )
        except NotFoundError:
            if not history.uncertain:
                raise
