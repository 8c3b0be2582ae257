"""File records and the result of saving one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sagastore import _checks as checks
from sagastore._enums import Store

__all__ = ["File", "FileSaveResult"]


@dataclass(frozen=True, slots=True, init=False)
class File:
    """The record of one file; the bytes of the file are not stored.

    The server checks lengths, in Unicode code points. Strings must not contain
    U+0000 or lone surrogates.

    Attributes:
        filename: Name of the file; 1 to 1024 characters.
        filepath: Where the application keeps the file; 1 to 4096 characters.
        file_type: Type of the file, for example `pdf` or `text/plain`; 1 to 256
            characters.
        id: 1 to 128 characters. If it is empty, the client assigns a UUIDv7
            when it saves the record.
        extracted_text: Text of the file, at most 3 MiB (3,145,728 bytes) in
            UTF-8; empty if there is none.
        tags: Labels, in order; at most 512, each 1 to 256 characters.
        file_size: Size of the file in bytes; 0 if it is not known.
        uploaded_at: Time of the upload, aware, to the microsecond. None means
            the server's time for a new id and the stored time for an existing
            id.
        metadata: A JSON object, with the limits of `Message.metadata`. Numbers
            that a Python float cannot represent are read as `decimal.Decimal`.
        created_at: Time when the id was first stored. Set by the server.
        revision: Increases with every change of the record; 0 before it is
            stored. Set by the server.
    """

    filename: str
    filepath: str
    file_type: str
    id: str
    extracted_text: str
    tags: tuple[str, ...]
    file_size: int
    uploaded_at: datetime | None
    metadata: dict[str, Any]
    created_at: datetime | None
    revision: int

    def __init__(
        self,
        filename: str,
        filepath: str,
        file_type: str,
        *,
        id: str = "",
        extracted_text: str = "",
        tags: Iterable[str] = (),
        file_size: int = 0,
        uploaded_at: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        created_at: datetime | None = None,
        revision: int = 0,
    ) -> None:
        """Create a record; see the class for the meaning of each value.

        Raises:
            InvalidArgumentError: `uploaded_at` or `created_at` has no time zone, or a
                value has the wrong type. The types of the texts are checked when
                the record is saved.
        """
        tags = tuple(checks.iterable(tags, "tags"))
        if metadata is not None:
            checks.mapping(metadata, "metadata")
        for name, time in (("uploaded_at", uploaded_at), ("created_at", created_at)):
            if time is not None:
                checks.time(time, name)
        file_size = checks.integer(file_size, "file_size", math.inf)
        revision = checks.integer(revision, "revision", math.inf)
        values = {
            "filename": filename,
            "filepath": filepath,
            "file_type": file_type,
            "id": id,
            "extracted_text": extracted_text,
            "tags": tags,
            "file_size": file_size,
            "uploaded_at": uploaded_at,
            "metadata": dict(metadata or {}),
            "created_at": created_at,
            "revision": revision,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        """Hash the hashable fields that identify a record."""
        return hash((self.id, self.revision, self.filename))


@dataclass(frozen=True, slots=True)
class FileSaveResult:
    """The result of saving a file record.

    Attributes:
        id: The record's id, which the client assigned if it was empty.
        revision: The stored revision.
        created: True if the id did not exist before.
        durable_on: The stores that have committed the record.
        position: The state of the store that has the write, for the `consistency` of a
            read; "" if the server tells none.
    """

    id: str
    revision: int
    created: bool
    durable_on: frozenset[Store]
    position: str = ""
