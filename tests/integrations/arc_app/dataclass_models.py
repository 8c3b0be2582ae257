"""Models of the application as dataclasses.

Messages have aware times, files naive ones in UTC, as in the real application.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from tests.integrations.arc_app.enums import FileType, MessageRole, Provider

__all__ = ["File", "FileType", "Message", "MessageRole", "Provider", "SearchResult"]


def naive_now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


@dataclass
class Message:
    provider: Provider
    role: MessageRole
    content: str
    tags: list[str] = field(default_factory=list)
    id: str = field(default_factory=lambda: str(uuid4()))
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    metadata: dict[str, Any] = field(default_factory=dict)
    session_id: str | None = None

    def __post_init__(self) -> None:
        if not self.content.strip():
            raise ValueError("the content must not be empty")


@dataclass
class File:
    filename: str
    filepath: str
    file_type: FileType
    extracted_text: str = ""
    tags: list[str] = field(default_factory=list)
    id: str = field(default_factory=lambda: str(uuid4()))
    file_size: int = 0
    uploaded_at: datetime = field(default_factory=naive_now)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class SearchResult:
    entity_id: str
    entity_type: str
    content: str
    tags: list[str]
    relevance_score: float = 1.0
    timestamp: datetime = field(default_factory=naive_now)
