"""Text from elsewhere, made harmless for a terminal.

Messages may hold anything, also the escape sequences that move a cursor, set the
title of a window or answer in the place of the person who reads.
"""

from __future__ import annotations

import re

__all__ = ["json_safe", "label", "one_line", "printable", "unbroken"]

# Control characters, those that set the direction of what follows, and the two
# separators at which some terminals and many programs break lines. A tab and a
# newline are the text's own.
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
    """Return the text with whatever could steer a terminal made visible instead."""
    if text.isascii() and text.isprintable():
        return text
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return _UNSAFE.sub(_visible, text)


def label(text: str) -> str:
    """Return the text as `printable` does, with tabs and newlines made visible, too."""
    return printable(text).replace("\n", "\u240a").replace("\t", "\u2409")


def unbroken(text: str) -> str:
    """Return the text as `printable` does, without breaks of lines."""
    return printable(_LINE_BREAKS.sub(" ", text))


def one_line(text: str) -> str:
    """Return the text as `printable` does, in one line."""
    return unbroken(text.strip())


def json_safe(text: str) -> str:
    """Escape the control characters that JSON allows inside of strings.

    The value stays the same; a terminal that takes C1 controls stays as it is.
    """
    return _C1.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
