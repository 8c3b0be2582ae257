"""What an import reads: files of JSON Lines and databases, told apart by their content."""

from __future__ import annotations

from sagastore.importers.base import Problem, Row, Source
from sagastore.importers.detect import open_source

__all__ = ["Problem", "Row", "Source", "open_source"]
