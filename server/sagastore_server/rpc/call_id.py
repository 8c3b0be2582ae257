"""Id of a call as its caller gives it, in the header ``x-request-id``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

CALL_ID_KEY = "x-request-id"
"""Header with the caller's id for the call, which errors and log lines then carry."""

_MIN_SECRET = 8
"""Characters of the shortest credential that is looked for in an id."""


def given_call_id(metadata: Iterable[tuple[str, Any]]) -> str:
    """Return the caller's id for the call, or an empty string.

    An id that contains the credential of the call is ignored, because ids are logged.
    """
    given, credentials = "", []
    for key, value in metadata:
        if not isinstance(value, str):
            continue
        if key == CALL_ID_KEY:
            given = given or value
        elif key == "authorization":
            credentials += [word for word in value.split() if len(word) >= _MIN_SECRET]
    return "" if any(word in given for word in credentials) else given
