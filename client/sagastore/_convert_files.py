"""Conversion between file records and protobuf messages."""

from __future__ import annotations

from sagastore import _checks as checks
from sagastore import _json
from sagastore._convert import naming, time_of, timestamp_to_pb
from sagastore._enums import Store
from sagastore._file_model import File, FileSaveResult
from sagastore._model import Page
from sagastore.v1 import file_pb2

__all__ = ["file_from_pb", "file_page", "file_save_result", "file_to_pb", "same_file"]

_TEXTS = ("filename", "filepath", "file_type", "extracted_text")


def file_to_pb(file: File, id: str) -> file_pb2.File:
    """Return the protobuf message for a record with the given id.

    Raises:
        InvalidArgumentError: A value cannot be encoded; the error names its
            field.
    """
    pb = file_pb2.File()
    pb.id = checks.text(id, "id")
    for name in _TEXTS:
        setattr(pb, name, checks.text(getattr(file, name), name))
    pb.tags.extend(checks.texts(file.tags, "tags"))
    pb.file_size = checks.int64(file.file_size, "file_size")
    if file.uploaded_at is not None:
        pb.uploaded_at.CopyFrom(timestamp_to_pb(file.uploaded_at, "uploaded_at"))
    with naming("metadata"):
        pb.metadata_json = _json.dumps(file.metadata) if file.metadata else ""
    return pb


def file_from_pb(pb: file_pb2.File) -> File:
    """Return the record for a protobuf message from the server."""
    metadata = pb.metadata_json
    return File(
        pb.filename,
        pb.filepath,
        pb.file_type,
        id=pb.id,
        extracted_text=pb.extracted_text,
        tags=tuple(pb.tags),
        file_size=pb.file_size,
        uploaded_at=time_of(pb, "uploaded_at"),
        metadata=_json.loads(metadata) if metadata and metadata != "{}" else {},
        created_at=time_of(pb, "created_at"),
        revision=pb.revision,
    )


def same_file(sent: file_pb2.File, stored: file_pb2.File) -> bool:
    """Report whether the stored record equals the record sent.

    If no time of upload was sent, the server chose it, and it is not compared.
    """
    return (
        sent.id == stored.id
        and all(getattr(sent, name) == getattr(stored, name) for name in _TEXTS)
        and sent.tags == stored.tags
        and sent.file_size == stored.file_size
        and (not sent.HasField("uploaded_at") or sent.uploaded_at == stored.uploaded_at)
        and _json.same(sent.metadata_json or "{}", stored.metadata_json or "{}")
    )


def file_save_result(
    pb: file_pb2.SaveFileResponse, *, created: bool | None = None
) -> FileSaveResult:
    """Return the result of a save; `created` overrides the value of the response."""
    return FileSaveResult(
        id=pb.id,
        revision=pb.revision,
        created=pb.created if created is None else created,
        durable_on=frozenset(map(Store, pb.durable_on)),
        position=pb.position,
    )


def file_page(pb: file_pb2.ListFilesResponse) -> Page[File]:
    """Return a page of file records."""
    return Page(tuple(map(file_from_pb, pb.files)), pb.next_page_token, pb.position)
