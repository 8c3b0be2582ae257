"""Index terms: the only code that computes the columns of ``messages_fts`` from a message.

Every writer of ``messages_fts`` uses it, so an index built by the legacy import equals one built
message by message.
"""

from __future__ import annotations

from collections.abc import Sequence

from sagastore_server.search.analysis import analyze
from sagastore_server.search.facts import metadata_facts, tag_fact
from sagastore_server.storage.model import Message, NewMessage

IndexedFields = tuple[str, Sequence[str], str]
"""The searchable fields of a message: content, tags, and metadata as canonical JSON."""

FtsColumns = tuple[str, str, str]
"""The ``stems``, ``words`` and ``facts`` of a message."""


def indexed_fields(message: NewMessage | Message) -> IndexedFields:
    """Return the arguments of ``fts_columns``."""
    return message.content, message.tags, message.metadata


def indexed_columns(draft: NewMessage) -> FtsColumns:
    """Return the terms of a draft: the ``StorageBackend.indexer`` of this store."""
    return fts_columns(*indexed_fields(draft))


def fts_columns(content: str, tags: Sequence[str], metadata: str) -> FtsColumns:
    """Return the ``stems``, ``words`` and ``facts`` of a message for ``messages_fts``.

    ``metadata`` is canonical JSON. Tokens are separated by one space, as the
    index's tokenizer expects.
    """
    stems, words = analyze(content)
    return " ".join(stems), " ".join(words), facts_column(tags, metadata)


def facts_column(tags: Sequence[str], metadata: str) -> str:
    """Return the tokens of the tags, then those of the metadata, separated by spaces."""
    facts = [tag_fact(tag) for tag in dict.fromkeys(tags)]
    facts += metadata_facts(metadata)
    return " ".join(facts)
