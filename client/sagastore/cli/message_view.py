"""Human-readable output of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sagastore import Message, SearchResult, _json
from sagastore.cli.console import Part, Screen
from sagastore.cli.times import show_time
from sagastore.commandline.sanitize import label

__all__ = ["hit", "in_session", "pretty_json", "whole"]

_ROLES = {
    "user": "bold cyan",
    "assistant": "bold green",
    "system": "bold yellow",
    "tool": "bold magenta",
}
_OTHER_ROLE = "bold blue"
_FAINT = "dim"
# Not only a colour, for NO_COLOR.
_MARKED = "bold underline yellow"
_INDENT = 4
_LABEL = 10
_SHORT_JSON = 72


def in_session(out: Screen, message: Message, place: int) -> None:
    """Print a message in a list of its session, with its place in the conversation."""
    out.line((f"{place:,}", _FAINT), "  ", *_head(message))
    out.line(message.content, indent=_INDENT)
    _foot(out, message)
    out.line("")


def hit(out: Screen, result: SearchResult) -> None:
    """Print a search result with the matching words highlighted."""
    message = result.message
    session = () if message.session_id is None else ("  ", label(message.session_id))
    out.line(*_head(message), *session)
    out.line(*_marked(result), indent=_INDENT)
    _foot(out, message)
    out.line("")


def whole(out: Screen, message: Message) -> None:
    """Print all fields of a message."""
    fields = {
        "id": label(message.id),
        "provider": label(message.provider),
        "role": label(message.role),
        "time": f"{show_time(message.timestamp, exact=True)} UTC",
        "session": "-" if message.session_id is None else label(message.session_id),
        "tags": ", ".join(map(label, message.tags)) or "-",
        "metadata": pretty_json(message.metadata),
        "saved": _saved(message),
    }
    for name, value in fields.items():
        style = _ROLES.get(value, _OTHER_ROLE) if name == "role" else ""
        first, *rest = value.split("\n")
        out.line((f"{name:<{_LABEL}}", _FAINT), (first, style))
        for more in rest:
            out.line(more, indent=_LABEL)
    out.line("")
    out.line(message.content, indent=_INDENT if out.is_terminal else 0)
    out.line("")


def _saved(message: Message) -> str:
    at = "" if message.created_at is None else f"{show_time(message.created_at)} UTC, "
    return f"{at}revision {message.revision}"


def _head(message: Message) -> tuple[tuple[str, str], ...]:
    return (
        (label(message.role), _ROLES.get(message.role, _OTHER_ROLE)),
        ("  ", ""),
        (label(message.provider), ""),
        ("  ", ""),
        (show_time(message.timestamp), _FAINT),
    )


def _foot(out: Screen, message: Message) -> None:
    tags = (f"#{tag}" for tag in message.tags)
    out.line(("  ".join(map(label, (message.id, *tags))), _FAINT), indent=_INDENT)


def _marked(result: SearchResult) -> Iterator[Part]:
    """Yield the snippet with the matching words highlighted.

    The two control characters that mark the words cannot occur in the text.
    """
    for index, part in enumerate(result.snippet.split("\x02")):
        inside, mark, outside = part.partition("\x03")
        if index and mark:
            yield inside, _MARKED
            yield outside
        else:
            yield part


def pretty_json(value: Mapping[str, Any]) -> str:
    """Return metadata for display, in one line if it is short, with all digits."""
    line = _inline(value)
    return line if len(line) <= _SHORT_JSON else "\n".join(_block(value, ""))


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_scalar(key)}: {_inline(item)}" for key, item in value.items())
        return f"{{{inner}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_inline, value))}]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    # `dumps` writes only mappings: remove `{"":` before the value and `}` after it.
    return _json.dumps({"": value})[4:-1]


def _block(value: Any, margin: str) -> list[str]:
    line = _inline(value)
    if not value or len(line) <= _SHORT_JSON - len(margin):
        return [line]
    deeper = margin + "  "
    if isinstance(value, Mapping):
        opening, closing = "{", "}"
        items = [(f"{_scalar(key)}: ", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        opening, closing = "[", "]"
        items = [("", item) for item in value]
    else:
        return [line]
    lines = [opening]
    for prefix, item in items:
        first, *rest = _block(item, deeper)
        lines += [f"{deeper}{prefix}{first}", *rest]
        lines[-1] += ","
    lines[-1] = lines[-1][:-1]
    return [*lines, f"{margin}{closing}"]
