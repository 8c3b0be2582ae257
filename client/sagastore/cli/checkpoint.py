"""How far an import has come, kept so that the next run goes on from there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sagastore.importers.base import Position

__all__ = ["Checkpoint", "CheckpointFile", "Counts", "write_atomically"]

_VERSION = 1


@dataclass(slots=True)
class Counts:
    """What has become of the rows so far."""

    read: int = 0
    saved: int = 0
    unchanged: int = 0
    skipped: int = 0
    rejected: int = 0


@dataclass(slots=True)
class Checkpoint:
    """A place in a source before which every row is dealt with.

    Attributes:
        position: The place.
        progress: How much of the source lies before it.
        counts: What became of the rows before it.
        seconds: How long that took.
        rejects_bytes: Size of the file of rejected rows at that place.
        first_rejects: The first of them: key, field, reason.
        witnesses: Ids of messages that must be in the store, if it is still the
            one that they were sent to.
        saved_at: When it was written, in seconds since 1970.
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
    """The checkpoint of one import: of a source, into a target, with its options."""

    def __init__(
        self, folder: Path, identity: dict[str, Any], target: str, options: dict[str, Any]
    ) -> None:
        self._identity = identity
        key = json.dumps([identity["path"], target, options], sort_keys=True)
        self.path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        self._about = {"target": target, "options": options}

    def load(self) -> Checkpoint | None:
        """Return the checkpoint; None where there is none that can be used.

        Raises:
            SourceChangedError: There is one, of other content of the source.
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
        """Write the checkpoint, wholly or not at all.

        Raises:
            OSError: It cannot be written.
        """
        checkpoint.saved_at = time.time()
        state = asdict(checkpoint)
        values = {"version": _VERSION, "source": self._identity, **self._about, "state": state}
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.path, json.dumps(values, ensure_ascii=False, indent=1))

    def remove(self) -> None:
        """Forget it."""
        with contextlib.suppress(OSError):
            self.path.unlink()


class SourceChangedError(Exception):
    """The source is not what it was when the checkpoint was written."""


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file; a crash leaves the old one or the new one.

    Raises:
        OSError: It cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
