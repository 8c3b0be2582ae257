"""Parsing and validation of the requests of FileService."""

from __future__ import annotations

from typing import NamedTuple

from sagastore.v1 import file_pb2
from sagastore_server.rpc import requests
from sagastore_server.storage.file_validation import SentFile, checked_file
from sagastore_server.storage.files import NewFile
from sagastore_server.storage.validation import Violations


class SaveFile(NamedTuple):
    """A validated SaveFileRequest."""

    draft: NewFile
    if_revision: int | None
    on_all_stores: bool
    """Whether every store of the phase must have stored it."""


class ListFiles(NamedTuple):
    """A validated ListFilesRequest."""

    tags: tuple[str, ...]
    page_size: int


def save(request: file_pb2.SaveFileRequest, new_id: str) -> SaveFile:
    """Parse a SaveFileRequest; ``new_id`` is the id of a record without one.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    if not request.HasField("file"):
        check.add("file", "is required")
        draft = NewFile("", "", "", "", "", (), 0, None, "{}")
    else:
        draft = checked_file(check, "file.", _sent(check, request.file, new_id))
    condition = None
    if request.HasField("if_revision"):
        condition = check.revision("if_revision", request.if_revision, lowest=0)
    on_all_stores = requests.on_all_stores(check, request.durability)
    check.raise_if_any()
    return SaveFile(draft, condition, on_all_stores)


def _sent(check: Violations, sent: file_pb2.File, new_id: str) -> SentFile:
    at = None
    if sent.HasField("uploaded_at"):
        time = sent.uploaded_at
        at = check.timestamp("file.uploaded_at", time.seconds, time.nanos)
    return SentFile(
        sent.id or new_id,
        sent.filename,
        sent.filepath,
        sent.file_type,
        sent.extracted_text,
        tuple(sent.tags),
        sent.file_size,
        at,
        sent.metadata_json,
    )


def list_files(request: file_pb2.ListFilesRequest) -> ListFiles:
    """Parse a ListFilesRequest.

    Raises:
        InvalidRequestError: The request is invalid.

    """
    check = Violations()
    check.tags("tags", request.tags)
    size = requests.checked_page_size(check, request.page_size)
    return ListFiles(tuple(request.tags), size)
