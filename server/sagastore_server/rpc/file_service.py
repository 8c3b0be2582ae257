"""FileService: the servicer of sagastore/v1/file.proto, over any `StorageBackend`."""

from __future__ import annotations

from sagastore.v1 import file_pb2
from sagastore_server.rpc import consistency, convert, file_requests, page_tokens, requests
from sagastore_server.rpc.handlers import TimeLeft, timed
from sagastore_server.rpc.ids import IdSource
from sagastore_server.rpc.offload import parsed
from sagastore_server.rpc.storage_service import durability_timeout
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.files import File, FilePosition, FileScan


class FileServicer:
    """Implements each RPC as the method of its name; `handlers` connects it to gRPC."""

    def __init__(self, backend: StorageBackend, worker_pool: WorkerPool) -> None:
        """Serve from ``backend``. Large requests are parsed in ``worker_pool``."""
        self._backend = backend
        self._worker_pool = worker_pool
        self._ids = IdSource()

    @timed
    async def SaveFile(
        self, request: file_pb2.SaveFileRequest, time_left: TimeLeft
    ) -> file_pb2.SaveFileResponse:
        """Store one file record."""
        new_id = "" if request.file.id else self._ids.new()
        cost = len(request.file.metadata_json)
        wanted = await parsed(self._worker_pool, cost, file_requests.save, request, new_id)
        draft, if_revision, on_all_stores = wanted
        within = durability_timeout(time_left()) if on_all_stores else None
        result = await self._backend.save_file(draft, if_revision, within)
        return file_pb2.SaveFileResponse(
            id=result.id,
            revision=result.revision,
            created=result.created,
            durable_on=[convert.STORES[store] for store in result.durable_on],
        )

    async def GetFile(self, request: file_pb2.GetFileRequest) -> file_pb2.GetFileResponse:
        """Read one file record."""
        found = await self._backend.get_file(requests.one_id(request.id))
        response = file_pb2.GetFileResponse()
        _fill(response.file, found)
        return response

    async def ListFiles(self, request: file_pb2.ListFilesRequest) -> file_pb2.ListFilesResponse:
        """Read a page of file records."""
        tags, size = file_requests.list_files(request)
        key = page_tokens.request_key("ListFiles", *tags)
        after = None
        if request.page_token:
            position = consistency.cursor_of(key, request.page_token, "page_token", (int, str))
            after = FilePosition(*position)  # type: ignore[arg-type]  # decode has checked the types
        page = await self._backend.list_files(FileScan(size, after, tags))
        response = file_pb2.ListFilesResponse()
        for record in page.files:
            _fill(response.files.add(), record)
        if page.more:
            response.next_page_token = consistency.token_of(key, page.files[-1].position)
        return response

    async def DeleteFile(self, request: file_pb2.DeleteFileRequest) -> file_pb2.DeleteFileResponse:
        """Remove one file record."""
        await self._backend.delete_file(*requests.delete(request))
        return file_pb2.DeleteFileResponse()


def _fill(target: file_pb2.File, source: File) -> None:
    """Write a stored record into an empty record of a response."""
    target.id = source.id
    target.filename = source.filename
    target.filepath = source.filepath
    target.file_type = source.file_type
    target.extracted_text = source.extracted_text
    target.tags.extend(source.tags)
    target.file_size = source.file_size
    convert.fill_time(target.uploaded_at, source.uploaded_at)
    target.metadata_json = source.metadata
    if source.created_at is not None:
        convert.fill_time(target.created_at, source.created_at)
    target.revision = source.revision
