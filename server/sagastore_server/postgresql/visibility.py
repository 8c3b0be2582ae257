"""Visibility: waits until the primary shows the commits that its standbys may show already.

With synchronous replication, a commit is written to the log and sent to the standbys, and the
primary shows it only after their confirmation. So a replica can show it first, with a position that
includes it. A read that requires this position must not be answered by a primary that lacks it,
although the log of the primary has passed the position.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sagastore_server.postgresql.errors import RETRY_AFTER
from sagastore_server.storage.errors import UnavailableError

COMMITTING = """
SELECT pid::text || ' ' || backend_xid::text FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND datname = current_database() AND state = 'active'
    AND (wait_event = 'SyncRep' OR position('COMMIT' IN upper(query)) > 0)
"""
"""Transactions whose commit is written or being written. PostgreSQL removes the transaction from
this view and shows its rows at the same time. Those that have not begun to commit cannot be known
to any standby, however long they run."""

_LONGEST = 1.0
"""Seconds that a read waits. Commits usually take some milliseconds; they take longer if no standby
confirms."""

_PAUSE = 0.002

_NOT_VISIBLE = (
    "the required position includes a commit of PostgreSQL that waits for the confirmation of a "
    "standby; try again"
)


async def until_visible(fetch: Callable[[str], Awaitable[list[Any]]]) -> None:
    """Wait until every commit is visible that a standby may have shown before this call.

    Args:
        fetch: Runs a statement on the primary, and returns its rows.

    Raises:
        UnavailableError: A commit still waits for its standby.
        asyncpg.PostgresError, OSError, ...: See ``errors.DRIVER_ERRORS``.

    """
    committing = {row[0] for row in await fetch(COMMITTING)}
    until = time.monotonic() + _LONGEST
    while committing:
        if time.monotonic() > until:
            raise UnavailableError(_NOT_VISIBLE, retry_after=RETRY_AFTER)
        await asyncio.sleep(_PAUSE)
        committing &= {row[0] for row in await fetch(COMMITTING)}
