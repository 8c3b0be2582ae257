"""The JSON form of a message, the same in the library, in `sagastore get --json` and in imports."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sagastore import _json
from sagastore._checks import wrong_type

if TYPE_CHECKING:
    from sagastore._model import Message

__all__ = ["fields_of", "record"]


def record(message: Message) -> dict[str, Any]:
    """Return the fields of a message as JSON values, those that the server sets included."""
    return {
        "id": message.id,
        "provider": message.provider,
        "role": message.role,
        "content": message.content,
        "tags": message.tags,
        "timestamp": _iso(message.timestamp),
        "metadata": message.metadata,
        "session_id": message.session_id,
        "created_at": _iso(message.created_at),
        "revision": message.revision,
        "sequence": message.sequence,
    }


def _iso(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()


def fields_of(text: str | bytes) -> dict[str, Any]:
    """Return the fields of a message that a JSON object has, as arguments of `Message`.

    Raises:
        ValueError: The text is not the JSON form of a message.
    """
    if not isinstance(text, str | bytes):
        raise wrong_type("text", "a str or bytes", text)
    try:
        values = _json.loads(text.decode() if isinstance(text, bytes) else text)
    except UnicodeDecodeError as exc:
        raise ValueError(f"message: is not UTF-8 at byte {exc.start:,}") from None
    except ValueError as exc:
        raise ValueError(f"message: {exc}") from None
    if not isinstance(values, dict):
        raise _wrong("message", "is not a JSON object")
    if unknown := sorted(values.keys() - _READERS.keys()):
        raise ValueError(f"{unknown[0][:40]}: is not a field of a message")
    if missing := [name for name in _REQUIRED if values.get(name) is None]:
        raise ValueError(f"{missing[0]}: is missing")
    return {
        name: _READERS[name](name, value) for name, value in values.items() if value is not None
    }


def _wrong(field: str, problem: str) -> ValueError:
    return ValueError(f"{field}: {problem}")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "is not a string")
    return value


def _texts(name: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise _wrong(name, "is not a list")
    return [_text(f"{name}[{index}]", item) for index, item in enumerate(value)]


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name, "is not an object")
    return value


def _number(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, "is not an integer")
    return value


def _time(name: str, value: Any) -> datetime:
    text = _text(name, value)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{name}: {text[:40]!r} is not a time in ISO form") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


_REQUIRED = ("provider", "role", "content")
_READERS: dict[str, Callable[[str, Any], Any]] = {
    "id": _text,
    "provider": _text,
    "role": _text,
    "content": _text,
    "tags": _texts,
    "timestamp": _time,
    "metadata": _object,
    "session_id": _text,
    "created_at": _time,
    "revision": _number,
    "sequence": _number,
}
