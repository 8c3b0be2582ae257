"""Closed sets of values of the application."""

from __future__ import annotations

from enum import StrEnum


class Provider(StrEnum):
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"
    ANTIGRAVITY = "antigravity"
    PERPLEXITY = "perplexity"
    GROQ = "groq"


class MessageRole(StrEnum):
    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"


class FileType(StrEnum):
    PDF = "pdf"
    CODE = "code"
    MARKDOWN = "markdown"
    TEXT = "text"
