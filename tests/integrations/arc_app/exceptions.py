"""Exceptions of the application."""

from __future__ import annotations


class StorageError(Exception):
    """A storage operation has failed."""

    def __init__(self, message: str, operation: str = "") -> None:
        super().__init__(f"{operation}: {message}")
        self.operation = operation
