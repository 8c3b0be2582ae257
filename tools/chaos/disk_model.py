"""Model of a disk after a power loss: all synced data, and any part of the rest.

The model is built from a log of system calls. Until a file is synced, each later write to it may
have reached the disk completely, partly (by sectors) or not at all, in any order. Until a directory
is synced, each name created or removed in it may be present or absent (``strict``). Journalling
file systems keep the order of such changes and make them durable with any later sync (``ordered``).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SECTOR = 512

_LINE = re.compile(r"^(\d+) +(\d+\.\d+) (.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+|\?)(.*)$")
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"^<\.\.\. \w+ resumed>(.*)$")
_OF_FILE = re.compile(r"^\d+<([^>]*)>(?:, (.*))?$")
_QUOTED = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')

CALLS = "openat,pwrite64,write,ftruncate,fdatasync,fsync,unlink,unlinkat,rename,renameat,renameat2"


class Event(NamedTuple):
    """System call that changes a file."""

    began: float
    """Seconds since 1970."""
    ended: float
    call: str
    path: str
    data: bytes = b""
    number: int = 0
    """Offset of a write, length of a truncation."""
    to: str = ""
    """New name."""


def read_log(log: Path, folder: Path) -> list[Event]:
    """Return the changes to files in ``folder``, in the order of their execution."""
    begun: dict[str, tuple[float, str]] = {}
    events = []
    with log.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            found = _LINE.match(line.rstrip("\n"))
            if found is None:
                continue
            thread, at, text = found[1], float(found[2]), found[3]
            if text.endswith(_UNFINISHED):
                begun[thread] = at, text.removesuffix(_UNFINISHED)
                continue
            began = at
            if resumed := _RESUMED.match(text):
                began, first = begun.pop(thread, (at, ""))
                text = first + resumed[1]
            event = _event(began, at, text)
            if event is not None and event.path.startswith(str(folder)):
                events.append(event)
    return events


def _event(began: float, ended: float, text: str) -> Event | None:
    found = _CALL.match(text)
    if found is None or found[3].startswith(("-", "?")):
        return None
    call, arguments, result = found[1], found[2], int(found[3])
    quoted = [bytes.fromhex(one.replace("\\x", "")) for one in _QUOTED.findall(arguments)]
    by_name = call.startswith(("openat", "unlink", "rename"))
    if not by_name:
        event = _of_descriptor(call, arguments, quoted, result)
        return event and event._replace(began=began, ended=ended)
    path = quoted[0].decode()
    if call == "openat":
        making = "O_CREAT" in arguments
        again = int("O_TRUNC" in arguments)
        return Event(began, ended, call, path, number=again) if making else None
    if call.startswith("unlink"):
        return Event(began, ended, "unlink", path)
    return Event(began, ended, "rename", path, to=quoted[1].decode())


def _of_descriptor(call: str, arguments: str, quoted: list[bytes], result: int) -> Event | None:
    found = _OF_FILE.match(arguments)
    if found is None:
        return None
    path = re.sub(r"\\x([0-9a-f]{2})", lambda one: chr(int(one[1], 16)), found[1])
    if call == "ftruncate":
        return Event(0, 0, call, path, number=int(found[2] or 0))
    if call in {"fsync", "fdatasync"}:
        return Event(0, 0, "fsync", path)
    offset = int(arguments.rpartition(", ")[2]) if call == "pwrite64" else -1
    return Event(0, 0, "write", path, quoted[0][:result], offset)


@dataclass
class _File:
    """Durable contents of a file, and the changes since."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Event] = field(default_factory=list)
    length: int = 0
    """Length as programs see it."""


class Model:
    """Durable state of the files of a folder."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._files: dict[str, _File] = {}
        """By the name that programs see."""
        self._durable_names: dict[str, _File] = {}
        self._changes: list[tuple[str, _File | None]] = []
        """Created and (with None) removed names that may not be durable yet, in order."""

    def begin_with(self, path: Path) -> None:
        """Add a file that already existed and is durable."""
        file = _File(bytearray(path.read_bytes()))
        file.length = len(file.durable)
        self._files[str(path)] = self._durable_names[str(path)] = file

    def apply(self, event: Event) -> None:
        """Apply a system call."""
        if event.call == "openat":
            if event.path not in self._files:
                self._name(event.path, _File())
            elif event.number:
                self._files[event.path].pending.append(event._replace(call="ftruncate", number=0))
        elif event.call == "unlink":
            self._files.pop(event.path, None)
            self._changes.append((event.path, None))
        elif event.call == "rename":
            file = self._files.pop(event.path, None)
            if file is not None:
                self._changes.append((event.path, None))
                self._name(event.to, file)
        elif event.call == "fsync":
            self._sync(event)
        elif (file := self._files.get(event.path)) is not None:
            self._change(file, event)

    def _change(self, file: _File, event: Event) -> None:
        if event.call == "write" and event.number < 0:
            event = event._replace(number=file.length)
        end = event.number + len(event.data)
        file.length = event.number if event.call == "ftruncate" else max(file.length, end)
        file.pending.append(event)

    def _name(self, path: str, file: _File) -> None:
        self._files[path] = file
        self._changes.append((path, file))

    def _sync(self, event: Event) -> None:
        file = self._files.get(event.path)
        if file is not None:
            # A sync does not cover data written while it runs.
            later = [one for one in file.pending if one.ended > event.began]
            for one in file.pending:
                if one not in later:
                    _do(file.durable, one)
            file.pending = later
        for path, changed in list(self._changes):
            folder = path.rpartition("/")[0] == event.path
            if folder or not self._strict or (changed is file and file is not None):
                self._changes.remove((path, changed))
                _rename(self._durable_names, path, changed)

    def after_power_loss(self, rng: random.Random, keeps: float) -> dict[str, bytes]:
        """Return one possible state of the disk.

        ``keeps`` is the probability that unsynced data survived.
        """
        names = dict(self._durable_names)
        changes = self._changes
        if self._strict:
            changes = [one for one in changes if rng.random() < keeps]
        else:
            kept = rng.randint(0, len(changes)) if 0 < keeps < 1 else round(keeps) * len(changes)
            changes = changes[:kept]
        for path, file in changes:
            _rename(names, path, file)
        return {path: bytes(_survivor(file, rng, keeps)) for path, file in names.items()}


def _rename(names: dict[str, _File], path: str, file: _File | None) -> None:
    if file is None:
        names.pop(path, None)
    else:
        names[path] = file


def _survivor(file: _File, rng: random.Random, keeps: float) -> bytearray:
    contents = bytearray(file.durable)
    for event in file.pending:
        chance = rng.random()
        if chance < keeps:
            _do(contents, event)
        elif event.call == "write" and chance < keeps + (1 - keeps) / 3 and keeps > 0:
            for part in _sectors(event):
                if rng.random() < 0.5:
                    _do(contents, part)
    return contents


def _sectors(event: Event) -> Iterator[Event]:
    """Split a write at sector boundaries."""
    at, data = event.number, event.data
    while data:
        size = min(len(data), SECTOR - at % SECTOR)
        yield event._replace(number=at, data=data[:size])
        at, data = at + size, data[size:]


def _do(contents: bytearray, event: Event) -> None:
    if event.call == "ftruncate":
        del contents[event.number :]
        contents.extend(bytes(event.number - len(contents)))
        return
    contents.extend(bytes(max(0, event.number - len(contents))))
    contents[event.number : event.number + len(event.data)] = event.data
