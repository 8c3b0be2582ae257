"""Secrets in the settings and the environment, which logs must not contain."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from sagastore_server.config.connection import resolve, resolve_replica
from sagastore_server.config.connection_string import ConnectionStringError
from sagastore_server.config.libpq import PASSWORD_VARIABLES
from sagastore_server.config.settings import Settings


def secrets_of(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the passwords of the database connections and the credentials of the collector."""
    found = [environment.get(name, "") for name in PASSWORD_VARIABLES]
    urls = [settings.otlp_endpoint or ""]
    if settings.postgres is not None:
        dsn = settings.postgres.get_secret_value()
        urls.append(dsn)
        # A file that was valid may have changed since.
        with contextlib.suppress(ConnectionStringError):
            found += resolve(dsn, environment).secrets
    for replica in settings.postgres_replicas:
        urls.append(replica.get_secret_value())
        with contextlib.suppress(ConnectionStringError):
            found += resolve_replica(urls[-1], environment).secrets
    for url in urls:
        found += _passwords(url)
    return [one for one in found if one]


def _passwords(url: str) -> Iterator[str]:
    """Yield the passwords in a URL, as they are written and decoded."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    user_part, _, _ = parts.netloc.rpartition("@")
    _, _, written = user_part.partition(":")
    yield from (written, unquote(written))
    for name, value in parse_qsl(parts.query):
        if "password" in name.lower():
            yield value
