"""Messages, and what the calls that store and find them answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sagastore._enums import Store
from sagastore._time import require_aware

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

    Lengths are checked by the server and count Unicode code points. No string
    may hold U+0000 or lone surrogates.

    Attributes:
        provider: Who ran the model, for example `openai`; 1 to 64 characters.
        role: Who spoke, for example `user`; 1 to 32 characters.
        content: What was said; not only white space, at most 100,000 characters.
        id: 1 to 128 characters; empty until the message is saved, when the
            client gives it a UUIDv7.
        tags: Labels in the order given; at most 512, each 1 to 256 characters.
        timestamp: When it was said, aware, to the microsecond. None: the
            server's time for a new id, and the stored time for an id that
            exists.
        metadata: A JSON object; at most 256 KiB as text. Numbers that a Python
            float would change come back as `decimal.Decimal`.
        session_id: The conversation; at most 256 characters. None and "" are
            two different values.
        created_at: When the id was first stored. Set by the server.
        revision: Grows with every change of the message; 0 before it is
            stored. Set by the server.
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
    ) -> None:
        """Make a message; see the class for the meaning of each value.

        Raises:
            ValueError: `timestamp` or `created_at` has no time zone.
            TypeError: `tags` is one string, or `metadata` is not a mapping.
        """
        if isinstance(tags, str):
            raise TypeError(f"tags: expected several strings, got the one string {tags!r}")
        if metadata is None:
            metadata = {}
        elif not isinstance(metadata, Mapping):
            raise TypeError(f"metadata: expected a mapping, got {type(metadata).__name__}")
        if timestamp is not None:
            require_aware(timestamp, "timestamp")
        if created_at is not None:
            require_aware(created_at, "created_at")
        _fill(
            self,
            provider,
            role,
            content,
            id,
            tuple(tags),
            timestamp,
            dict(metadata),
            session_id,
            created_at,
            revision,
        )

    def __hash__(self) -> int:
        """Hash what identifies a message; metadata, a dict, cannot be hashed."""
        return hash((self.id, self.revision, self.content))


# The slots' own setters: object.__setattr__ by name takes twice as long, and
# reading is where most messages are made.
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
) -> Message:
    """Set all values of a new message, without checking them."""
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
    return message


@dataclass(frozen=True, slots=True)
class SaveResult:
    """What a Save did.

    Attributes:
        id: The message's id, assigned by the client where it had none.
        revision: The revision that is stored now.
        created: True when the id did not exist before.
        durable_on: The stores that have committed the message.
    """

    id: str
    revision: int
    created: bool
    durable_on: frozenset[Store]


@dataclass(frozen=True, slots=True)
class BatchGetResult:
    """The answer to a request for several messages.

    Attributes:
        messages: Those found, in the order asked; an id given twice is
            answered twice.
        missing_ids: The ids not found, in the order asked.
    """

    messages: tuple[Message, ...]
    missing_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One match of a search.

    Attributes:
        message: The message as stored.
        score: How well the words match: 0 or greater, comparable within one
            query only.
        snippet: An extract of the content, at most about 200 characters, with
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
            start: Put before each matching word.
            end: Put after each matching word.
            escape: Applied to the text, not to the marks: `html.escape` where
                the result goes into a web page.
        """
        text = self.snippet if escape is None else escape(self.snippet)
        return text.replace(_MARK_START, start).replace(_MARK_END, end)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a list or of a search.

    Attributes:
        items: What the page holds, in order.
        next_page_token: Asks for the next page; empty when this is the last.
            Valid without limit of time, for the same request only.
    """

    items: tuple[T, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class RejectedMessage:
    """Why one message of a bulk save was not stored.

    Attributes:
        position: Its position in the input, from 0.
        id: Its id.
        field: The first field that breaks a rule.
        reason: What is wrong, in one line.
    """

    position: int
    id: str
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class BulkAck:
    """The outcome of one batch of a bulk save, once it is durable.

    `saved + unchanged + skipped + len(rejected) == count`. A batch that had to
    be sent twice may count as unchanged (or skipped, with `OnConflict.SKIP`)
    what its first sending saved.

    Attributes:
        first_position: Position in the input of the batch's first message,
            from 0.
        count: Messages of the input in the batch, which are consecutive.
        saved: Stored, new or replacing another.
        unchanged: Stored already, equal to what was sent.
        skipped: Left out: the id exists (`OnConflict.SKIP`), or came again
            later in the batch.
        rejected: Those that break a rule. Nothing of them was stored.
    """

    first_position: int
    count: int
    saved: int
    unchanged: int
    skipped: int
    rejected: tuple[RejectedMessage, ...]


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """How far a bulk save is: counts of acknowledged messages.

    Attributes:
        acknowledged: Messages of the input that are dealt with; every one
            before this position is durable or was rejected.
        saved: Stored, new or replacing another.
        unchanged: Stored already, equal to what was sent.
        skipped: Left out; see `BulkAck.skipped`.
        rejected: How many broke a rule.
    """

    acknowledged: int
    saved: int
    unchanged: int
    skipped: int
    rejected: int


@dataclass(frozen=True, slots=True)
class BulkResult:
    """The outcome of a whole bulk save.

    Attributes:
        total: Messages of the input.
        saved: Stored, new or replacing another.
        unchanged: Stored already, equal to what was sent.
        skipped: Left out; see `BulkAck.skipped`.
        rejected: Those that break a rule, by position.
    """

    total: int
    saved: int
    unchanged: int
    skipped: int
    rejected: tuple[RejectedMessage, ...]


@dataclass(frozen=True, slots=True)
class ExportBatch:
    """One batch of an export.

    Attributes:
        messages: The messages, ordered by id (bytes).
        resume_token: Continues the export after this batch.
    """

    messages: tuple[Message, ...]
    resume_token: str
