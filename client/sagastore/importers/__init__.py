"""Readers of the files that an import accepts, which are detected by their content.

- JSON Lines, also compressed.
- The `memory.db` of ARC SAGA.
- The SQLite file of a SagaStore server.

`open_source` returns a `Source`, which yields one `Row` for each message or invalid row.
"""

from __future__ import annotations

from sagastore.importers.base import Problem, Row, Source
from sagastore.importers.detect import open_source

__all__ = ["Problem", "Row", "Source", "open_source"]
