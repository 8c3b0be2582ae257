"""Sanitizing of untrusted text for terminals.

Messages may contain escape sequences, which can move the cursor, set the title of the
window or simulate input.
"""

from __future__ import annotations

import re

__all__ = ["json_safe", "label", "one_line", "printable", "unbroken"]

# Control characters except tab and newline, characters that set the text direction,
# and the two separators at which some terminals and programs break lines.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_LINE_BREAKS = re.compile(r"\r\n?|\n")
_C1 = re.compile("[\x7f-\x9f]")


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def printable(text: str) -> str:
    """Return the text with control characters replaced by visible ones."""
    if text.isascii() and text.isprintable():
        return text
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return _UNSAFE.sub(_visible, text)


def label(text: str) -> str:
    """Like `printable`; also replaces tabs and newlines by visible characters."""
    return printable(text).replace("\n", "\u240a").replace("\t", "\u2409")


def unbroken(text: str) -> str:
    """Like `printable`; also replaces line breaks by spaces."""
    return printable(_LINE_BREAKS.sub(" ", text))


def one_line(text: str) -> str:
    """Like `unbroken`; also strips white space."""
    return unbroken(text.strip())


def json_safe(text: str) -> str:
    """Escape the control characters that JSON allows in strings.

    The value does not change. Some terminals interpret C1 control characters.
    """
    return _C1.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
