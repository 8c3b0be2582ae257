"""Validation of one message of a batch, with its index terms; runs in a worker process.

The process receives the message in protobuf and does everything with it in one step, so that a
message crosses the process boundary once. The module is separate from `bulk` so that the process
imports it without gRPC.
"""

from __future__ import annotations

from typing import Any

from sagastore.v1 import message_pb2
from sagastore_server.rpc import convert
from sagastore_server.storage.base import Indexer
from sagastore_server.storage.errors import Violation
from sagastore_server.storage.validation import Violations

Checked = tuple[list[Violation], tuple[Any, ...], Any]
"""Violations of a message and, if there are none, the fields of its ``NewMessage`` and its index
terms. Plain tuples, because instances of classes take longer to pickle."""


def check(keep_created_at: bool, message: bytes, indexer: Indexer | None) -> Checked:
    """Validate a serialized ``sagastore.v1.Message``, and extract its terms with ``indexer``.

    ``keep_created_at`` is that of ``BulkSaveRequest``.
    """
    source = message_pb2.Message.FromString(message)
    rules = Violations()
    draft = rules.sent("", convert.sent_of(source, source.id, keep_created_at=keep_created_at))
    terms = None if indexer is None or rules.found else indexer(draft)
    return rules.found, tuple(draft), terms
