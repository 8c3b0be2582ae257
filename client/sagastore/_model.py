"""Messages and the results of calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sagastore import _checks as checks
from sagastore import _json
from sagastore._enums import Store
from sagastore._message_json import fields_of, record

__all__ = [
    "BatchGetResult",
    "BulkAck",
    "BulkProgress",
    "BulkResult",
    "ExportBatch",
    "Message",
    "Page",
    "RejectedMessage",
    "SaveResult",
    "SearchResult",
]

T = TypeVar("T")

_MARK_START = "\x02"
_MARK_END = "\x03"


@dataclass(frozen=True, slots=True, init=False)
class Message:
    """One message of an AI conversation.

    The server checks lengths, in Unicode code points. Strings must not contain
    U+0000 or lone surrogates.

    Attributes:
        provider: Provider of the model, for example `openai`; 1 to 64
            characters.
        role: Role of the author, for example `user`; 1 to 32 characters.
        content: Text of the message, at most 1,000,000 characters. It may be empty:
            a message that only carries tool calls has no text.
        id: 1 to 128 characters. If it is empty, the client assigns a UUIDv7
            when it saves the message.
        tags: Labels, in order; at most 512, each 1 to 256 characters.
        timestamp: Time of the message, aware, to the microsecond. None means
            the server's time for a new id and the stored time for an existing
            id.
        metadata: A JSON object, at most 1 MiB (1,048,576 bytes) as text. A float
            is read as an equal float (the sign of -0.0 is lost), an int as an int.
            Numbers that a Python float cannot represent are read as
            `decimal.Decimal`.
        session_id: The conversation, at most 256 characters. None and "" are
            different values.
        created_at: Time when the id was first stored. Set by the server.
        revision: Increases with every change of the message; 0 before it is
            stored. Set by the server.
        sequence: Order in which messages were first stored; it orders messages
            with equal timestamps. 0 before it is stored. Set by the server.
    """

    provider: str
    role: str
    content: str
    id: str
    tags: tuple[str, ...]
    timestamp: datetime | None
    metadata: dict[str, Any]
    session_id: str | None
    created_at: datetime | None
    revision: int
    sequence: int

    def __init__(
        self,
        provider: str,
        role: str,
        content: str,
        *,
        id: str = "",
        tags: Iterable[str] = (),
        timestamp: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        session_id: str | None = None,
        created_at: datetime | None = None,
        revision: int = 0,
        sequence: int = 0,
    ) -> None:
        """Create a message; see the class for the meaning of each value.

        Raises:
            InvalidArgumentError: `timestamp` or `created_at` has no time zone, or a
                value has the wrong type. The types of the texts are checked when
                the message is saved, where a bulk save reports them.
        """
        if type(tags) is not tuple:
            tags = tuple(checks.iterable(tags, "tags"))
        if metadata is None:
            metadata = {}
        elif type(metadata) is not dict:
            checks.mapping(metadata, "metadata")
        if timestamp is not None:
            checks.time(timestamp, "timestamp")
        if created_at is not None:
            checks.time(created_at, "created_at")
        if not (type(revision) is int and type(sequence) is int):
            revision = checks.integer(revision, "revision", math.inf)
            sequence = checks.integer(sequence, "sequence", math.inf)
        _fill(
            self,
            provider,
            role,
            content,
            id,
            tags,
            timestamp,
            dict(metadata),
            session_id,
            created_at,
            revision,
            sequence,
        )

    def __hash__(self) -> int:
        """Hash the hashable fields that identify a message."""
        return hash((self.id, self.revision, self.content))

    def to_json(self) -> str:
        """Return the message as a JSON object in one line, with all fields.

        The object is that of `sagastore get --json`, and a line that `sagastore
        import` accepts. Times are in ISO form.

        Raises:
            ValueError: A value of the metadata has no JSON form.
            TypeError: A value of the metadata has no JSON form.
        """
        return _json.dumps(record(self), "message")

    @classmethod
    def from_json(cls, text: str | bytes) -> Message:
        """Return the message of a JSON object with the fields of `to_json`.

        Only `provider`, `role` and `content` are required; null is the same as
        a missing field. A time without an offset is UTC; digits after the
        microseconds are dropped.

        Args:
            text: The JSON text; bytes are UTF-8.

        Raises:
            ValueError: The text is not the JSON form of a message; the error
                starts with the field.
        """
        return cls(**fields_of(text))


# The setters of the slots: object.__setattr__ takes twice as long, and reads create
# most messages.
_set_provider = Message.__dict__["provider"].__set__
_set_role = Message.__dict__["role"].__set__
_set_content = Message.__dict__["content"].__set__
_set_id = Message.__dict__["id"].__set__
_set_tags = Message.__dict__["tags"].__set__
_set_timestamp = Message.__dict__["timestamp"].__set__
_set_metadata = Message.__dict__["metadata"].__set__
_set_session_id = Message.__dict__["session_id"].__set__
_set_created_at = Message.__dict__["created_at"].__set__
_set_revision = Message.__dict__["revision"].__set__
_set_sequence = Message.__dict__["sequence"].__set__


def _fill(  # noqa: PLR0917 - keywords cost time here
    message: Message,
    provider: str,
    role: str,
    content: str,
    id: str,
    tags: tuple[str, ...],
    timestamp: datetime | None,
    metadata: dict[str, Any],
    session_id: str | None,
    created_at: datetime | None,
    revision: int,
    sequence: int,
) -> Message:
    """Set all values of a new message without validation."""
    _set_provider(message, provider)
    _set_role(message, role)
    _set_content(message, content)
    _set_id(message, id)
    _set_tags(message, tags)
    _set_timestamp(message, timestamp)
    _set_metadata(message, metadata)
    _set_session_id(message, session_id)
    _set_created_at(message, created_at)
    _set_revision(message, revision)
    _set_sequence(message, sequence)
    return message


@dataclass(frozen=True, slots=True)
class SaveResult:
    """The result of a save.

    Attributes:
        id: The message's id, which the client assigned if it was empty.
        revision: The stored revision.
        created: True if the id did not exist before.
        durable_on: The stores that have committed the message.
        position: The state of the store that has the write, for the `consistency` of a
            read; "" if the server tells none.
    """

    id: str
    revision: int
    created: bool
    durable_on: frozenset[Store]
    position: str = ""


@dataclass(frozen=True, slots=True)
class BatchGetResult:
    """The result of a read of several messages.

    Attributes:
        messages: The messages found, in the order of the ids; a repeated id
            returns its message repeatedly.
        missing_ids: The ids not found, in the order of the ids.
        position: The state that the read has seen, for the `consistency` of another
            read; with more than 1000 ids, the newest one. "" if the server tells
            none.
    """

    messages: tuple[Message, ...]
    missing_ids: tuple[str, ...]
    position: str = ""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One match of a search.

    Attributes:
        message: The message as stored.
        score: Relevance, at least 0; comparable only within one query.
        snippet: An extract of the content of about 200 characters at most, with
            each matching word between U+0002 and U+0003; see `highlight`.
    """

    message: Message
    score: float
    snippet: str

    def highlight(
        self,
        start: str = "**",
        end: str = "**",
        *,
        escape: Callable[[str], str] | None = None,
    ) -> str:
        """Return the snippet with `start` and `end` around each matching word.

        Args:
            start: Text before each matching word.
            end: Text after each matching word.
            escape: Applied to the snippet, not to `start` and `end`; use
                `html.escape` for a web page.

        Raises:
            InvalidArgumentError: An argument has the wrong type.
        """
        checks.text(start, "start")
        checks.text(end, "end")
        if escape is not None:
            checks.callback(escape, "escape")
        text = self.snippet if escape is None else escape(self.snippet)
        return text.replace(_MARK_START, start).replace(_MARK_END, end)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a list or of a search.

    Attributes:
        items: The items, in order.
        next_page_token: Token of the next page; empty on the last page. Does
            not expire; valid only for the same request.
        position: The state that the read has seen, for the `consistency` of another
            read; "" if the server tells none.
    """

    items: tuple[T, ...]
    next_page_token: str
    position: str = ""


@dataclass(frozen=True, slots=True)
class RejectedMessage:
    """Why one message of a bulk save was not stored.

    Attributes:
        position: Position in the input, from 0.
        id: The message's id.
        field: The first invalid field.
        reason: The problem, in one line.
    """

    position: int
    id: str
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class BulkAck:
    """The result of one durable batch of a bulk save.

    `saved + unchanged + skipped + len(rejected) == count`. If a batch is resent,
    messages that the first attempt saved count as unchanged, or as skipped with
    `OnConflict.SKIP`.

    Attributes:
        first_position: Input position of the first message, from 0.
        count: Number of messages of the input, which are consecutive.
        saved: Number of messages stored, new or replaced.
        unchanged: Number of messages that were already stored and equal.
        skipped: Number of messages not stored because the id exists
            (`OnConflict.SKIP`) or occurs again later in the batch.
        rejected: Invalid messages, which were not stored.
        position: The state of the store that has the batch, for the `consistency` of a
            read; "" if the server tells none.
    """

    first_position: int
    count: int
    saved: int
    unchanged: int
    skipped: int
    rejected: tuple[RejectedMessage, ...]
    position: str = ""


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """The progress of a bulk save: counts of acknowledged messages.

    Attributes:
        acknowledged: Number of processed messages; every message before this
            position is durable or was rejected.
        saved: Number of messages stored, new or replaced.
        unchanged: Number of messages that were already stored and equal.
        skipped: Number of messages not stored; see `BulkAck.skipped`.
        rejected: Number of invalid messages.
    """

    acknowledged: int
    saved: int
    unchanged: int
    skipped: int
    rejected: int


@dataclass(frozen=True, slots=True)
class BulkResult:
    """The result of a bulk save.

    Attributes:
        total: Number of messages of the input.
        saved: Number of messages stored, new or replaced.
        unchanged: Number of messages that were already stored and equal.
        skipped: Number of messages not stored; see `BulkAck.skipped`.
        rejected: Invalid messages, ordered by their positions in the input.
        position: The state of the store that has all batches, for the `consistency` of a
            read; "" if the server tells none.
    """

    total: int
    saved: int
    unchanged: int
    skipped: int
    rejected: tuple[RejectedMessage, ...]
    position: str = ""


@dataclass(frozen=True, slots=True)
class ExportBatch:
    """One batch of an export.

    Attributes:
        messages: The messages, ordered by the UTF-8 bytes of the id.
        resume_token: Continues the export after this batch.
        position: The state that the read has seen, for the `consistency` of another
            read; "" if the server tells none.
    """

    messages: tuple[Message, ...]
    resume_token: str
    position: str = ""
