"""JSON form of messages, sessions and files, with the same fields in all commands."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sagastore import File, Message, SearchResult, Session, _json
from sagastore._message_json import record
from sagastore.commandline.sanitize import json_safe

__all__ = [
    "document",
    "file_record",
    "hit_line",
    "iso",
    "message_line",
    "message_record",
    "session_record",
]


def document(value: dict[str, Any]) -> str:
    """Return a JSON document in one line."""
    return json_safe(_json.dumps(value, "output"))


def message_line(message: Message) -> str:
    """Return a message with the fields that the server sets."""
    return document(message_record(message))


def hit_line(hit: SearchResult) -> str:
    """Return a search result: the message, its score and its snippet."""
    return document(message_record(hit.message) | {"score": hit.score, "snippet": hit.snippet})


def message_record(message: Message) -> dict[str, Any]:
    """Return the fields of a message, those that the server sets included."""
    return record(message)


def session_record(session: Session) -> dict[str, Any]:
    """Return the fields of a session."""
    return {
        "session_id": session.session_id,
        "title": session.title,
        "metadata": session.metadata,
        "message_count": session.message_count,
        "first_time": iso(session.first_time),
        "last_time": iso(session.last_time),
        "created_at": iso(session.created_at),
        "updated_at": iso(session.updated_at),
        "revision": session.revision,
        "providers": session.providers,
        "first_message": session.first_message,
        "last_sequence": session.last_sequence,
    }


def file_record(file: File) -> dict[str, Any]:
    """Return the fields of a file record."""
    return {
        "id": file.id,
        "filename": file.filename,
        "filepath": file.filepath,
        "file_type": file.file_type,
        "extracted_text": file.extracted_text,
        "tags": file.tags,
        "file_size": file.file_size,
        "uploaded_at": iso(file.uploaded_at),
        "metadata": file.metadata,
        "created_at": iso(file.created_at),
        "revision": file.revision,
    }


def iso(value: datetime | None) -> str | None:
    """Return a time in ISO form."""
    return None if value is None else value.isoformat()
