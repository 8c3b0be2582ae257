"""Names of the formats that an import does not read, each with a command that converts the file.

Every command ends in `| sagastore import -`. Full importers may replace single entries.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import lzma
import re
import shlex
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from sagastore.cli.failures import CommandError, UnsupportedFormatError

__all__ = ["HEAD_BYTES", "check_format", "explain_damage"]

HEAD_BYTES: Final = 65_536
"""Bytes of the start of a file by which its format is recognized."""

_WHITESPACE: Final = b" \t\r\n"
_UTF8_BOM: Final = b"\xef\xbb\xbf"
_TAR_MARK: Final = slice(257, 262)
"""Place of `ustar` in the first header of a tar archive (POSIX.1-2017, pax, ustar Interchange)."""

_MEMBERS: Final = 1000
"""Members of a tar archive to look at; it has no list of them."""

_EXAMPLE: Final = '{"provider": "openai", "role": "user", "content": "Hi"}'

# First bytes of compressed formats, the name, and the program that decompresses it.
_COMPRESSED: Final = (
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"),
    (b"\x04\x22\x4d\x18", "LZ4", "lz4 -dc"),
    (b"\x1f\x9d", "compress (.Z)", "gzip -dc"),
    (b"\x5d\x00\x00", "LZMA", "xz --format=lzma -dc"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", "7z x -so"),
)

# Encodings of text other than UTF-8, by their first bytes. UTF-32 has the mark of UTF-16 too.
_ENCODINGS: Final = (
    (b"\xff\xfe\x00\x00", "UTF-32", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32", "UTF-32"),
    (b"\xff\xfe", "UTF-16", "UTF-16"),
    (b"\xfe\xff", "UTF-16", "UTF-16"),
    (b"{\x00", "UTF-16", "UTF-16LE"),
    (b"[\x00", "UTF-16", "UTF-16LE"),
    (b"\x00{", "UTF-16", "UTF-16BE"),
    (b"\x00[", "UTF-16", "UTF-16BE"),
)

# Formats that have no conversion in one command.
_OTHERS: Final = (
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"Obj\x01", "an Avro file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF-", "a PDF document"),
    (b"Rar!", "a RAR archive"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
)
_LOGS: Final = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83", b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7")
"""First bytes of a log (-wal) or a journal (-journal) of SQLite (sqlite.org/fileformat2.html)."""


class _Chats(NamedTuple):
    """A JSON format of conversations."""

    name: str
    keys: frozenset[str]
    """Keys that such a document has near its start."""
    program: str
    """What jq does with each conversation, `.value`, and its number, `.key`."""


_TEXT: Final = '(.content // "" | if type == "string" then . else tojson end)'
_CHATS: Final = (
    _Chats(
        "a ChatGPT export",
        frozenset({"mapping", "children"}),
        ".value | (.conversation_id // .id) as $s | [.mapping[].message | select(.content.parts?)]"
        ' | sort_by(.create_time)[] | {id, provider: "openai", role: .author.role,'
        ' content: ([.content.parts[] | strings] | join("\\n")),'
        " timestamp: (.create_time | if . then todate else . end), session_id: $s}",
    ),
    _Chats(
        "a Claude export",
        frozenset({"chat_messages", "sender"}),
        '.value | .uuid as $s | .chat_messages[] | {id: .uuid, provider: "anthropic",'
        ' role: ({human: "user"}[.sender] // .sender), content: .text,'
        " timestamp: .created_at, session_id: $s}",
    ),
    _Chats(
        "an Open WebUI export",
        frozenset({"history", "currentId", "messages"}),
        ".value | .id as $s | [(.chat // .).history.messages[]] | sort_by(.timestamp)[] |"
        f' {{id, provider: "open-webui", role, content: {_TEXT},'
        " timestamp: (.timestamp | if . then todate else . end), session_id: $s}",
    ),
    _Chats(
        "a LibreChat export",
        frozenset({"conversationId", "messages", "isCreatedByUser"}),
        ".value | .conversationId as $s | [.messages[] | recurse(.children[]?)][] |"
        ' {id: .messageId, provider: "librechat",'
        ' role: (if .isCreatedByUser then "user" else "assistant" end), content: (.text // ""),'
        " timestamp: .createdAt, session_id: $s}",
    ),
    _Chats(
        "a ShareGPT file",
        frozenset({"conversations", "from", "value"}),
        '.key as $n | .value | "\\(.id // "chat")-\\($n)" as $s | .conversations[] |'
        ' {provider: "sharegpt", role: ({human: "user", gpt: "assistant"}[.from] // .from),'
        " content: .value, session_id: $s}",
    ),
    _Chats(
        "an OpenAI file of conversations (fine-tuning)",
        frozenset({"messages", "role", "content"}),
        '"\\(input_filename)-\\(.key)" as $s | .value.messages[] |'
        f' {{provider: "openai", role, content: {_TEXT}, session_id: $s}}',
    ),
)
_BARE: Final = _Chats(
    "a list of chat messages without provider",
    frozenset({"role", "content"}),
    f'.value | {{provider: "unknown", role, content: {_TEXT}}}',
)
_MESSAGE: Final = frozenset({"provider", "role", "content"})
_KEY: Final = re.compile(rb'"([A-Za-z_]{1,40})"\s*:')
_WORD: Final = re.compile(r"[A-Za-z_][\w.-]*")
_HEADER: Final = re.compile(r"[A-Za-z_][\w .-]*")
_CSV: Final = (
    "import csv, json, sys; csv.field_size_limit(2**30); [print(json.dumps({k: v for k, v in"
    ' r.items() if k and (v or k == "content")})) for r in csv.DictReader(sys.stdin{})]'
)


def check_format(name: str, head: bytes, path: Path | None) -> None:
    """Reject a file that is not JSON Lines before anything is sent.

    Args:
        name: The name of the file, as the user gave it.
        head: The start of its decompressed content.
        path: The file; None if it cannot be read again.

    Raises:
        UnsupportedFormatError: It has another format; the error names it, and says what to do.
    """
    shown = "FILE" if path is None else shlex.quote(name)
    _check_archive(name, head, path, shown)
    _check_binary(name, head, shown)
    start = head.removeprefix(_UTF8_BOM).lstrip(_WHITESPACE)
    if start.startswith(b"["):
        _refuse_array(name, start, shown)
    elif start.startswith(b"{"):
        _check_objects(name, start, shown)
    elif start:
        _refuse_text(name, start, shown)


def explain_damage(name: str, error: Exception) -> CommandError:
    """Return the error for a compressed file that cannot be decompressed to its end."""
    shown = shlex.quote(name)
    if isinstance(error, gzip.BadGzipFile) and "Not a gzipped file" in str(error):
        return _trailing(name, "gzip", f"gzip -dcq {shown}")
    if isinstance(error, lzma.LZMAError) and "format not supported" in str(error):
        return _trailing(name, "xz", f"xz -dc --single-stream {shown}")
    if isinstance(error, EOFError):
        return CommandError(
            f"cannot read {name}: its compressed data ends early; copy or download it again"
        )
    reason = getattr(error, "strerror", None) or error
    return CommandError(f"cannot read {name}: {reason}")


def _trailing(name: str, what: str, command: str) -> CommandError:
    return CommandError(
        f"cannot read {name} to its end: after its {what} data there are bytes that are not {what};"
        f" if they are of no use, import the data before them: {command} | sagastore import -"
    )


def _refuse(name: str, what: str, command: str) -> None:
    raise UnsupportedFormatError(
        f"{name} is {what}; import it with: {command} | sagastore import -"
    )


def _check_archive(name: str, head: bytes, path: Path | None, shown: str) -> None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        member = shlex.quote(_member(_zip_names(path)))
        _refuse(name, "a ZIP archive", f"unzip -p {shown} {member}")
    if head[_TAR_MARK] == b"ustar":
        member = shlex.quote(_member(_tar_names(path)))
        _refuse(name, "a tar archive", f"tar -xOf {shown} {member}")


def _member(names: Iterable[str]) -> str:
    """Return the file of an archive that is most likely to hold messages."""
    found = [name for name in names if not name.endswith("/")]
    for suffix in ("conversations.json", ".jsonl", ".db", ".json", ".csv", ""):
        for name in found:
            if name.endswith(suffix):
                return name
    return "NAME"


def _zip_names(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


def _tar_names(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        with tarfile.open(path) as archive:
            first = itertools.islice(archive, _MEMBERS)
            return [member.name for member in first if member.isfile()]
    except (tarfile.TarError, OSError, EOFError, ValueError, lzma.LZMAError):
        return []


def _check_binary(name: str, head: bytes, shown: str) -> None:
    for mark, what, program in _COMPRESSED:
        if head.startswith(mark):
            _refuse(name, f"compressed with {what}", f"{program} {shown}")
    for mark, what, encoding in _ENCODINGS:
        if head.startswith(mark):
            _refuse(name, f"{what} text", f"iconv -f {encoding} -t UTF-8 {shown}")
    for mark, what in _OTHERS:
        if head.startswith(mark):
            raise UnsupportedFormatError(
                f"{name} is {what}; convert it to JSON Lines, one message per line: {_EXAMPLE}"
            )
    if head.startswith(_LOGS):
        raise UnsupportedFormatError(
            f"{name} is a log of a SQLite database; import the database itself"
        )


def _jq(program: str, shown: str) -> str:
    every = '[inputs | if type == "array" then .[] else . end] | to_entries[]'
    return f"jq -nc {shlex.quote(f'{every} | {program}')} {shown}"


def _chats_of(keys: set[str]) -> _Chats | None:
    if keys >= _MESSAGE:
        return None
    return next((chats for chats in _CHATS if keys >= chats.keys), None)


def _keys(text: bytes) -> set[str]:
    return {key.decode() for key in _KEY.findall(text)}


def _refuse_array(name: str, start: bytes, shown: str) -> None:
    keys = _keys(start)
    chats = _chats_of(keys)
    if chats is None and _BARE.keys <= keys and not keys >= _MESSAGE:
        chats = _BARE
    if chats is not None:
        _refuse(name, chats.name, _jq(chats.program, shown))
    if not keys >= _MESSAGE:
        raise UnsupportedFormatError(
            f"{name} is a JSON array, but not of messages; import takes one message per line: "
            f"{_EXAMPLE}"
        )
    command = f"jq -c '.[]' {shown} | sagastore import -"
    raise UnsupportedFormatError(
        f"{name} is a JSON array; import expects one object per line: {command}"
    )


def _check_objects(name: str, start: bytes, shown: str) -> None:
    """Reject one indented document, and lines of which each is a conversation."""
    first, end, rest = start.partition(b"\n")
    try:
        found = json.loads(first)
    except (ValueError, RecursionError):
        if end and (rest.lstrip().startswith(b"{") or not _is_indented(first, rest)):
            return  # A line that is invalid, or cut off, or longer than the start of the file.
        keys, what = _keys(start), "one JSON document on several lines" if end else ""
    else:
        keys, what = _keys(first), ""
        if not isinstance(found, dict) or found.keys() & _MESSAGE:
            return
    chats = _chats_of(keys)
    if chats is not None:
        _refuse(name, chats.name, _jq(chats.program, shown))
    if what and keys >= _MESSAGE:
        _refuse(name, f"{what}, and import expects one message per line", f"jq -c . {shown}")
    if what:
        raise UnsupportedFormatError(
            f"{name} is {what}, but not a message; import takes one message per line: {_EXAMPLE}"
        )


def _is_indented(first: bytes, rest: bytes) -> bool:
    """Tell whether an object continues on the next line."""
    return first.strip().endswith((b"{", b"[", b",")) and rest.lstrip()[:1] in {b'"', b""}


def _refuse_text(name: str, start: bytes, shown: str) -> None:
    text = start.decode("utf-8", "replace")
    delimiter = _delimiter(text.partition("\n")[0])
    if delimiter:
        what = {",": "CSV", ";": "CSV with semicolons", "\t": "tab-separated text"}[delimiter]
        option = "" if delimiter == "," else f", delimiter={delimiter!r}"
        program = shlex.quote(_CSV.replace("{}", option))
        raise UnsupportedFormatError(
            f"{name} is {what}; if its columns are named provider, role, content, session_id and"
            f" timestamp, import it with: python3 -c {program} < {shown} | sagastore import -"
        )
    if re.match(r"(?i)<!doctype html|<html", text):
        raise UnsupportedFormatError(f"{name} is an HTML page; export the conversations as JSON")
    if text.startswith("<?xml"):
        raise UnsupportedFormatError(
            f"{name} is XML; convert it to JSON Lines, one message per line: {_EXAMPLE}"
        )
    raise UnsupportedFormatError(
        f"{name} is neither JSON Lines nor a SQLite database: it starts with "
        f"{start[:20].decode('utf-8', 'backslashreplace')!r}; import takes one message per line: "
        f"{_EXAMPLE}"
    )


def _delimiter(header: str) -> str:
    """Return the delimiter of a header line of CSV; empty if it is none."""
    for delimiter in ",;\t":
        try:
            (names,) = csv.reader(io.StringIO(header.strip()), delimiter=delimiter)
        except (ValueError, csv.Error):
            continue
        # Two phrases with a comma between them are prose.
        pattern = _WORD if len(names) == 2 else _HEADER
        if len(names) > 1 and all(pattern.fullmatch(name.strip()) for name in names):
            return delimiter
    return ""
