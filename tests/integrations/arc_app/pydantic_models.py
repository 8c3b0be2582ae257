"""Models of the application as pydantic models; a search result contains the message."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from tests.integrations.arc_app.enums import FileType, MessageRole, Provider

__all__ = ["File", "FileType", "Message", "MessageRole", "Provider", "SearchResult"]


def naive_now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    provider: Provider
    role: MessageRole
    content: str = Field(min_length=1)
    tags: list[str] = Field(default_factory=list)
    id: str = Field(default_factory=lambda: str(uuid4()))
    timestamp: datetime = Field(default_factory=lambda: datetime.now(UTC))
    metadata: dict[str, Any] = Field(default_factory=dict)
    session_id: str | None = None


class File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    filename: str
    filepath: str
    file_type: FileType
    extracted_text: str | None = None
    tags: list[str] = Field(default_factory=list)
    id: str = Field(default_factory=lambda: str(uuid4()))
    file_size: int = 0
    uploaded_at: datetime = Field(default_factory=naive_now)
    metadata: dict[str, Any] = Field(default_factory=dict)


class SearchResult(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    entity: Message
    score: float
