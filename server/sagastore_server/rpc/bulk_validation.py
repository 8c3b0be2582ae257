"""The check of one message of many, and its terms: what another process does for a batch.

That process is sent the message as it came, in protobuf, and does all there is to do with it
at once, so that a message goes there and back one time. No gRPC here: it is not needed there.
"""

from __future__ import annotations

from typing import Any

from sagastore.v1 import message_pb2
from sagastore_server.rpc import convert
from sagastore_server.storage.base import Indexer
from sagastore_server.storage.errors import Violation
from sagastore_server.storage.validation import Violations

Checked = tuple[list[Violation], tuple[Any, ...], Any]
"""The rules that a message breaks; and where it breaks none, the fields of its ``NewMessage``, and
what the store is to index of it. Plain tuples: classes of our own take long to be sent."""


def check(message: bytes, indexer: Indexer | None) -> Checked:
    """Check a serialized ``sagastore.v1.Message``, and make its terms if somebody wants them."""
    source = message_pb2.Message.FromString(message)
    rules = Violations()
    draft = rules.sent("", convert.sent_of(source, source.id))
    terms = None if indexer is None or rules.found else indexer(draft)
    return rules.found, tuple(draft), terms
