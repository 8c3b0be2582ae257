"""Audit trail: the interface that records changes and refused callers.

`rpc` reports the calls; `telemetry.audit` writes the lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagastore_server.interfaces.call_context import CallContext

Details = tuple[tuple[str, object], ...]
"""What a call changes: pairs of field and value (text, number, boolean or a list of texts)."""
Describe = Callable[[Any, Any], Details]
"""Returns the details of a request and its response, which is None if the call failed."""

IN_PROGRESS = "IN_PROGRESS"
"""Code of a line about a stream that is still open."""


class Audit:
    """Receives the end of every call. This class records nothing.

    Its methods are called on the event loop: they are fast, do not block and do not raise.
    """

    records_changes = False
    """Whether `CallContext.describe` is needed."""

    def changed(self, call: CallContext, code: str) -> None:
        """Record the change of ``call`` with the status ``code``, or with `IN_PROGRESS`."""

    def ended(self, call: CallContext, code: str) -> None:
        """Record the end of a call: its change, or that its caller was refused."""
