"""The checkpoint of an import, from which an interrupted import resumes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import stat
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sagastore.cli.output_folder import OutputFolder
from sagastore.importers.base import Position

__all__ = ["Checkpoint", "CheckpointFile", "Counts", "make_private_folder", "write_atomically"]

_VERSION = 1


@dataclass(slots=True)
class Counts:
    """Numbers of rows by their result."""

    read: int = 0
    saved: int = 0
    unchanged: int = 0
    skipped: int = 0
    rejected: int = 0


@dataclass(slots=True)
class Checkpoint:
    """A position in a source; all rows before it are processed.

    Attributes:
        position: The position.
        progress: How much of the source is before it.
        counts: The results of the rows before it.
        seconds: Duration of the import up to it.
        rejects_bytes: Size of the rejects file at the position.
        first_rejects: The first rejected rows: key, field, reason.
        witnesses: Ids of messages that the server must still have.
        saved_at: Time of writing, in seconds since 1970.
    """

    position: Position
    progress: int
    counts: Counts
    seconds: float = 0.0
    rejects_bytes: int = 0
    first_rejects: list[list[str]] = field(default_factory=list)
    witnesses: list[str] = field(default_factory=list)
    saved_at: float = 0.0


class CheckpointFile:
    """The checkpoint file of one combination of source, target and options."""

    def __init__(
        self, folder: Path, identity: dict[str, Any], target: str, options: dict[str, Any]
    ) -> None:
        self._identity = identity
        key = json.dumps([identity["path"], target, options], sort_keys=True)
        self.path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        self._about = {"target": target, "options": options}

    def load(self) -> Checkpoint | None:
        """Return the checkpoint; None if there is no valid one.

        Raises:
            SourceChangedError: The source has changed since the checkpoint.
        """
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            if values["version"] != _VERSION:
                return None
            known = values["source"]
            state = values["state"]
            state["position"] = Position(*state["position"])
            state["counts"] = Counts(**state["counts"])
            checkpoint = Checkpoint(**state)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if known != self._identity:
            raise SourceChangedError
        return checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint atomically.

        Raises:
            OSError: The file cannot be written.
        """
        checkpoint.saved_at = time.time()
        state = asdict(checkpoint)
        values = {"version": _VERSION, "source": self._identity, **self._about, "state": state}
        make_private_folder(self.path.parent)
        write_atomically(self.path, json.dumps(values, ensure_ascii=False, indent=1))

    def remove(self) -> None:
        """Delete the checkpoint."""
        with contextlib.suppress(OSError):
            self.path.unlink()


class SourceChangedError(Exception):
    """The source has changed since the checkpoint was written."""


def make_private_folder(path: Path) -> None:
    """Create a folder and the missing ones above it, for their owner only.

    `Path.mkdir(parents=True)` gives its mode to the last one only.

    Raises:
        OSError: It cannot be created.
    """
    for folder in (*reversed(path.parents), path):
        folder.mkdir(exist_ok=True, mode=stat.S_IRWXU)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file atomically; see `OutputFolder`.

    Raises:
        OSError: The file cannot be written.
    """
    folder = OutputFolder(path)
    try:
        folder.write(folder.name, text.encode(errors="surrogatepass"))
    finally:
        folder.close()
