"""Text of log lines: secrets are masked, and values and lines have a bounded length.

Masks too much rather than too little. A masked value may be an id that looks like a token.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping

MASK = "********"
MAX_VALUE = 1000
"""Characters of a value. The longest values of the server's own are reasons of failures."""
MAX_TRACEBACK = 4000
"""Characters of a traceback. Its beginning and its end are kept."""
MAX_LINE = 8192
"""Bytes of a line, without the time and the level."""

_MAX_INPUT = 2000
"""Characters of a line of text that are searched for secrets; the rest is cut before.

Some patterns take quadratic time: 2000 characters take less than 5 ms."""
_MAX_ROWS = 200
"""Rows of a traceback that are kept."""
_SHORT = 100
"""Characters of the values of a line that would be too long."""
_MIN_LITERAL = 8
"""Characters of the shortest secret that is searched for as it is. A shorter password may be part
of common words; it is masked where a pattern finds it."""

_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{1,40}-----.*?(?:-----END [A-Z0-9 ]{1,40}-----|\Z)", re.DOTALL
)
_BEARER = re.compile(r"\b(bearer|basic)(\s+)[^\s\"']{12,}", re.IGNORECASE)
_USERINFO = re.compile(
    r"([a-z][a-z0-9+.-]{0,20}://[^\s/@\"':]{0,200}):[^\s\"']{0,500}@", re.IGNORECASE
)
_ASSIGNED = re.compile(
    r"([a-z_-]{0,40}(?:password|passwd|passphrase|secret|token|api_?key|authorization)"
    r"[\"']?\s{0,5}[=:]\s{0,5})"
    r"(b?\"(?:[^\"\\]|\\.)*\"?|b?'(?:[^'\\]|\\.|'')*'?|[^\s,;&\"'}\]]+)",
    re.IGNORECASE,
)
_OWN_TOKEN = re.compile(r"saga_[A-Za-z0-9_-]{8,}")
"""A token that ``sagastore-server token new`` made, or most of one."""
_RUN = re.compile(r"[A-Za-z0-9_+/=-]{32,}")
_SEPARATORS = re.compile(r"[_+/=-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]|[\ud800-\udfff]")

_HARMLESS = re.compile(r"[0-9a-z.-]{0,128}|(?!.*saga_)[0-9A-Za-z._-]{0,31}")
"""What no pattern matches, such as a UUID or a short name; checked first, because it is usual."""

Secrets = tuple[str, ...]


def literals(secrets: Iterable[str | None]) -> Secrets:
    """Return those of ``secrets`` that can be searched for as they are, longest first."""
    found = {one for one in secrets if one is not None and len(one) >= _MIN_LITERAL}
    return tuple(sorted(found, key=lambda one: (-len(one), one)))


def masked(text: str, secrets: Secrets = ()) -> str:
    """Return ``text`` without secrets: ``secrets`` themselves, and what looks like one.

    That is a private key, a credential in a header, a URL or an assignment, and a long string of
    random letters and digits. A token is replaced by the beginning of its SHA-256, as
    ``sagastore-server token list`` shows it.
    """
    for secret in secrets:
        text = text.replace(secret, MASK)
    if _HARMLESS.fullmatch(text):
        return text
    text = _PEM.sub(f"[{MASK}]", text)
    text = _BEARER.sub(rf"\1\2{MASK}", text)
    text = _USERINFO.sub(rf"\1:{MASK}@", text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    text = _OWN_TOKEN.sub(lambda found: _digest(found[0]), text)
    return _RUN.sub(lambda found: _digest(found[0]) if _is_random(found[0]) else found[0], text)


def clean(value: str, secrets: Secrets = (), limit: int = MAX_VALUE) -> str:
    """Return a value without secrets and control characters, cut to ``limit`` characters."""
    if not secrets and len(value) <= limit and _HARMLESS.fullmatch(value):
        return value
    shown = masked(value[:_MAX_INPUT], secrets)
    if _CONTROL.search(shown):
        shown = _CONTROL.sub(_escaped, shown)
    # Indented, so that on a terminal no row of a value looks like a separate line.
    shown = shown.replace("\n", "\n    ")
    return _cut(shown, limit, len(value))


def clean_event(event: Mapping[str, object], secrets: Secrets = ()) -> dict[str, object]:
    """Return the fields of a log line, masked and bounded."""
    cleaned = {
        clean(str(key), secrets, _SHORT): _clean_field(str(key), value, secrets)
        for key, value in event.items()
    }
    if len(_encoded(cleaned)) <= MAX_LINE:
        return cleaned
    return {
        key: value if not isinstance(value, str) else _cut(value, _SHORT, len(value))
        for key, value in list(cleaned.items())[:20]
    }


def _clean_field(key: str, value: object, secrets: Secrets) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else repr(value)
    if key in {"exception", "stack"}:
        return _clean_traceback(text, secrets)
    return clean(text, secrets)


def _clean_traceback(text: str, secrets: Secrets) -> str:
    # A key is masked as a whole; every other secret is within a row.
    rows = _PEM.sub(f"[{MASK}]", text[:200_000]).split("\n")
    if len(rows) > _MAX_ROWS:
        rows = [*rows[: _MAX_ROWS // 2], "…", *rows[-_MAX_ROWS // 2 :]]
    shown = "\n".join(clean(row, secrets) for row in rows)
    if len(shown) <= MAX_TRACEBACK:
        return shown
    return f"{shown[: MAX_TRACEBACK // 4]}\n…\n{shown[-MAX_TRACEBACK * 3 // 4 :]}"


def _cut(text: str, limit: int, length: int) -> str:
    if len(text) <= limit and length <= _MAX_INPUT:
        return text
    return f"{text[:limit]}… ({length:,} characters)"


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _is_random(run: str) -> bool:
    """Whether letters of both cases and digits alternate as in random characters.

    In random base64 the kind changes at 0.62 of the characters, in paths and names with
    underscores at less than 0.2. UUIDs and hashes in hexadecimal have one case: they are ids.
    """
    letters = _SEPARATORS.sub("", run)
    if letters.islower() or letters.isupper() or len(letters) < 2:
        return False
    kinds = [_kind(letter) for letter in letters]
    changes = sum(one != other for one, other in itertools.pairwise(kinds))
    return changes >= 0.25 * (len(letters) - 1)


def _kind(letter: str) -> int:
    if letter.isdigit():
        return 0
    return 1 if letter.islower() else 2


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _encoded(event: Mapping[str, object]) -> bytes:
    return json.dumps(event, ensure_ascii=False, default=str).encode("utf-8", "replace")
