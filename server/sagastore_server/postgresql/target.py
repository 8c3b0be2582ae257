"""What may be said about where a database is: everything but secrets."""

from __future__ import annotations

import contextlib
import os
from urllib.parse import parse_qs, urlsplit


def shown(dsn: str) -> str:
    """Return host, port and database of a connection string, without user or password."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(dsn)
        query = parse_qs(parts.query)
        host = _first(query, "host") or parts.netloc.rpartition("@")[2]
        host = host or os.environ.get("PGHOST", "localhost")
        port = _first(query, "port") or ""
        database = _first(query, "dbname", "database") or parts.path.lstrip("/")
        database = database or os.environ.get("PGDATABASE", "")
        return f"{host}{':' + port if port else ''}{'/' + database if database else ''}"
    return "the configured address"


def _first(query: dict[str, list[str]], *names: str) -> str:
    return next((query[name][0] for name in names if name in query), "")
