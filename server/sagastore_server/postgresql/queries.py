"""The named statements of queries.sql, sessions.sql, files.sql and migration.sql."""

from __future__ import annotations

import re
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def _load(name: str) -> dict[str, str]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    parts = _NAME.split(text)
    return {name: sql.strip() for name, sql in zip(parts[1::2], parts[2::2], strict=True)}


QUERIES = _load("queries.sql") | _load("sessions.sql") | _load("files.sql")
"""Statement by name."""

MIGRATION = _load("migration.sql")
"""Statement of the live migration by name."""
