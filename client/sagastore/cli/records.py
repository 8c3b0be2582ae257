"""JSON form of messages, with the same fields in the same order in all commands."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sagastore import Message, SearchResult, _json
from sagastore.cli.sanitize import json_safe

__all__ = ["document", "hit_line", "iso", "message_line"]


def document(value: dict[str, Any]) -> str:
    """Return a JSON document in one line."""
    return json_safe(_json.dumps(value, "output"))


def message_line(message: Message) -> str:
    """Return a message with the fields that the server sets."""
    return document(_full(message))


def hit_line(hit: SearchResult) -> str:
    """Return a search result: the message, its score and its snippet."""
    return document(_full(hit.message) | {"score": hit.score, "snippet": hit.snippet})


def _record(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "provider": message.provider,
        "role": message.role,
        "content": message.content,
        "tags": message.tags,
        "timestamp": iso(message.timestamp),
        "metadata": message.metadata,
        "session_id": message.session_id,
        "created_at": iso(message.created_at),
    }


def _full(message: Message) -> dict[str, Any]:
    return _record(message) | {"revision": message.revision, "sequence": message.sequence}


def iso(value: datetime | None) -> str | None:
    """Return a time in ISO form."""
    return None if value is None else value.isoformat()
