"""Files of other formats: the error names the format, and its command imports the file."""

from __future__ import annotations

import gzip
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sagastore.cli.failures import CommandError
from sagastore.commandline.exit_status import ExitStatus
from sagastore.importers import open_source
from tests.cli.command import Sagastore

MESSAGE = {"provider": "openai", "role": "user", "content": "Hi, é\n", "session_id": "s"}
LINE = json.dumps(MESSAGE, ensure_ascii=False).encode() + b"\n"


class Format(NamedTuple):
    """A file, what the error says about it, and the messages that its command imports."""

    content: bytes
    says: str
    expected: Sequence[tuple[str, str, str, str | None]]
    """Provider, role, content and session."""


def _doc(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent).encode()


def _zip(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return file.getvalue()


def _tar(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("a folder/my chats.jsonl")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _turn(id: str, role: str, text: str, time: float | None) -> dict[str, Any]:
    message = {
        "id": id,
        "author": {"role": role, "name": None},
        "create_time": time,
        "content": {"content_type": "text", "parts": [text]},
    }
    return {"id": id, "message": message, "parent": "r", "children": []}


CHATGPT = {
    "title": "T",
    "mapping": {
        "r": {"id": "r", "message": None, "parent": None, "children": ["b"]},
        "b": _turn("b", "assistant", "two", 1700000001.25),
        "a": _turn("a", "user", "one", 1700000000.5),
    },
    "conversation_id": "c1",
}
CLAUDE = [
    {
        "uuid": "u",
        "name": "n",
        "chat_messages": [
            {"uuid": f"u{n}", "text": f"t{n}", "sender": sender,
             "created_at": "2024-05-01T10:00:00.000000Z"}
            for n, sender in enumerate(["human", "assistant"])
        ],
    }
]  # fmt: skip
WEBUI = [
    {
        "id": "w",
        "title": "t",
        "chat": {
            "history": {
                "messages": {
                    "2": {"id": "2", "role": "assistant", "content": "b", "timestamp": 1700000001},
                    "1": {"id": "1", "role": "user", "content": "a", "timestamp": 1700000000},
                },
                "currentId": "2",
            },
        },
    }
]
LIBRECHAT = {
    "conversationId": "l",
    "endpoint": "openAI",
    "messages": [
        {"messageId": "1", "text": "a", "isCreatedByUser": True, "children": [
            {"messageId": "2", "text": "b", "isCreatedByUser": False, "children": []}]},
    ],
}  # fmt: skip
SHAREGPT = [
    {
        "id": "a1",
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}],
    }
]
OPENAI = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}]}
ONE = [(MESSAGE["provider"], MESSAGE["role"], MESSAGE["content"], MESSAGE["session_id"])]
GPT = [("openai", "user", "one", "c1"), ("openai", "assistant", "two", "c1")]
SHARE = [("sharegpt", "user", "hi", "a1-0"), ("sharegpt", "assistant", "yo", "a1-0")]
CSV = (
    'provider,role,content,session_id,timestamp\nopenai,user,"Hi, é\n",s,2024-05-01\n'
    "openai,user,,s,\n"
)
CSV_ROWS = [*ONE, ("openai", "user", "", "s")]

FORMATS: dict[str, Format] = {
    "zip": Format(_zip(readme_txt=b"x", chats_jsonl=LINE), "is a ZIP archive", ONE),
    "tar": Format(_tar(LINE), "is a tar archive", ONE),
    "tar.gz": Format(gzip.compress(_tar(LINE)), "is a tar archive", ONE),
    "utf-16": Format(LINE.decode().encode("utf-16"), "is UTF-16 text", ONE),
    "utf-16be": Format(LINE.decode().encode("utf-16-be"), "is UTF-16 text", ONE),
    "utf-16le": Format(LINE.decode().encode("utf-16-le"), "is UTF-16 text", ONE),
    "utf-32": Format(LINE.decode().encode("utf-32"), "is UTF-32 text", ONE),
    "indented": Format(_doc(MESSAGE, 2), "is one JSON document on several lines", ONE),
    "array": Format(_doc([MESSAGE]), "is a JSON array", ONE),
    "indented array": Format(b"\xef\xbb\xbf \n" + _doc([MESSAGE], 1), "is a JSON array", ONE),
    "csv": Format(CSV.encode(), "is CSV;", CSV_ROWS),
    "semicolons": Format(CSV.replace(",", ";").replace("Hi;", "Hi,").encode(), "semic", CSV_ROWS),
    "tabs": Format(CSV.replace(",", "\t").replace("Hi\t", "Hi,").encode(), "tab-sep", CSV_ROWS),
    "chatgpt": Format(_doc(CHATGPT, 2), "is a ChatGPT export", GPT),
    "chatgpt export": Format(_doc([CHATGPT]), "is a ChatGPT export", GPT),
    "chatgpt line": Format(_doc(CHATGPT), "is a ChatGPT export", GPT),
    "claude": Format(
        _doc(CLAUDE), "is a Claude export",
        [("anthropic", "user", "t0", "u"), ("anthropic", "assistant", "t1", "u")],
    ),
    "open webui": Format(
        _doc(WEBUI, 2), "is an Open WebUI export",
        [("open-webui", "user", "a", "w"), ("open-webui", "assistant", "b", "w")],
    ),
    "librechat": Format(
        _doc(LIBRECHAT, 2), "is a LibreChat export",
        [("librechat", "user", "a", "l"), ("librechat", "assistant", "b", "l")],
    ),
    "sharegpt": Format(_doc(SHAREGPT), "is a ShareGPT file", SHARE),
    "sharegpt lines": Format(_doc(SHAREGPT[0]) + b"\n", "is a ShareGPT file", SHARE),
    "openai": Format(
        (_doc(OPENAI) + b"\n") * 2, "is an OpenAI file of conversations",
        [("openai", role, text, f"my file-{n}") for n in (0, 1)
         for role, text in (("user", "hi"), ("assistant", ""))],
    ),
    "bare messages": Format(
        _doc([{"role": "user", "content": "hi"}], 1), "is a list of chat messages",
        [("unknown", "user", "hi", None)],
    ),
    "garbage after gzip": Format(gzip.compress(LINE) + b"garbage", "are not gzip", ONE),
}  # fmt: skip


def _error(path: Path) -> str:
    """Return the error of an import of the file."""
    with pytest.raises(CommandError) as caught:
        _read(path)
    return str(caught.value)


def _read(path: Path) -> None:
    source = open_source(str(path))
    try:
        list(source.rows(None))
    finally:
        source.close()


@pytest.mark.parametrize("name", FORMATS)
def test_command_of_the_error_imports_the_file(name: str, tmp_path: Path) -> None:
    given = FORMATS[name]
    path = tmp_path / "my file"
    path.write_bytes(given.content)
    error = _error(path)
    assert given.says in error
    assert len(error.splitlines()) == 1
    command = error[error.index(": ", error.index(given.says)) + 2 :].replace(str(path), "my file")
    program = shlex.split(command)[0]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    _check_conversion(command, given, tmp_path)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (FORMATS["indented array"].content, ExitStatus.INCOMPLETE),
        (b"PAR1 rest", ExitStatus.INCOMPLETE),
        (b"\x00\x01\x02", ExitStatus.INCOMPLETE),
        (b"", ExitStatus.INCOMPLETE),
        (b"\x1f\x8b\x08garbage", ExitStatus.FAILED),
        (None, ExitStatus.FAILED),
    ],
)
def test_file_of_which_nothing_can_be_stored_is_an_incomplete_import(
    cli: Sagastore, tmp_path: Path, content: bytes | None, status: ExitStatus
) -> None:
    """A file that cannot be read is a failure instead."""
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    assert cli.run("import", path).returncode == status


def _check_conversion(command: str, given: Format, folder: Path) -> None:
    converter = command.removesuffix(" | sagastore import -")
    assert converter != command
    done = subprocess.run(
        ["/bin/sh", "-c", converter],
        cwd=folder,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONUTF8": "1"},
        capture_output=True,
        check=False,
    )
    converted = folder / "converted"
    converted.write_bytes(done.stdout)
    source = open_source(str(converted))
    rows = list(source.rows(None))
    source.close()
    assert [row.problems for row in rows if row.problems] == [], done.stderr
    found = [row.message for row in rows if row.message is not None]
    assert [(m.provider, m.role, m.content, m.session_id) for m in found] == list(given.expected)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x28\xb5\x2f\xfd rest", "is compressed with zstd; import it with: zstd -dc"),
        (b"\x04\x22\x4d\x18 rest", "is compressed with LZ4; import it with: lz4 -dc"),
        (b"7z\xbc\xaf\x27\x1c rest", "is compressed with 7-Zip; import it with: 7z x -so"),
        (b"PAR1 rest", "is a Parquet file; convert it to JSON Lines"),
        (b"%PDF-1.7 rest", "is a PDF document; convert it"),
        (b"PK\x03\x04 cut off", "is a ZIP archive; import it with: unzip -p"),
        (b'[{"id": 1}]', "is a JSON array, but not of messages; import takes one message per"),
        (b'{\n "id": 1\n}', "is one JSON document on several lines, but not a message"),
        (b"<!DOCTYPE html><p>", "is an HTML page"),
        (b"<?xml version='1.0'?>", "is XML"),
        (b"\x37\x7f\x06\x82 rest", "is a log of a SQLite database; import the database itself"),
        (b"\x1f\x8b\x08garbage", "starts like a compressed file, but is damaged"),
        (b"\x1f\x8b", "starts like a compressed file, but is damaged"),
        (b"BZh9 no", "cannot read"),
        (b"\xfd7zXZ\x00 no", "starts like a compressed file, but is damaged"),
        (b"\x00\x01\x02", "is neither JSON Lines nor a SQLite database"),
        (b'"text"\n', "is neither JSON Lines nor a SQLite database"),
        (b"- provider: openai\n", "is neither JSON Lines nor a SQLite database"),
    ],
)
def test_format_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    error = _error(path)
    assert says in error
    assert len(error.splitlines()) == 1


def test_zstd_command_works(tmp_path: Path) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    path = tmp_path / "my file"
    (tmp_path / "plain").write_bytes(LINE)
    subprocess.run(["zstd", "-q", "plain", "-o", "my file"], cwd=tmp_path, check=True)
    command = _error(path).partition("import it with: ")[2].replace(str(path), "my file")
    _check_conversion(command, Format(b"", "", ONE), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        LINE,
        b"{\n" + LINE,
        b'{"provider": "openai",\n' + LINE,
        b'{"id": 1}\n' + LINE,
        b'{"provider":"p","role":"r","content":"c","metadata":{"mapping":{"children":1}}}\n' + LINE,
        b'{"messages":1,"role":"r","content":"c"}\n' + LINE,
        json.dumps(MESSAGE | {"content": "x" * 200_000}).encode() + b"\n" + LINE,
    ],
)
def test_one_bad_line_does_not_make_another_format(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(content)
    source = open_source(str(path))
    last = list(source.rows(None))[-1]
    source.close()
    assert last.message is not None
    assert last.message.content == MESSAGE["content"]


@pytest.mark.parametrize("name", ["~no-such-user-7/x", "loop", "missing", "folder", "x" * 5000])
def test_path_of_no_file_is_reported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    with pytest.raises(CommandError, match="cannot read") as caught:
        open_source(name)
    assert len(str(caught.value).splitlines()) == 1
