"""Files of a client of a round: it writes and reads its own, and checks every answer exactly."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from sagastore_server.storage.errors import NotFoundError
from sagastore_server.storage.files import File, FileScan, NewFile
from sagastore_server.storage.model import Store
from tests.simulation.service import Make
from tests.support.checker import WrongAnswerError

if TYPE_CHECKING:
    from tests.simulation.world import World

FILES = 4
"""Files of each client."""

PAGE = 7
_FIRST = 1_800_000_000_000_000


class _Call(Protocol):
    async def __call__(self, what: str, make: Make[Any], **options: Any) -> Any: ...


class _Write(Protocol):
    async def __call__(self, what: str, make: Make[Any]) -> tuple[Any, bool]: ...


class FileClient:
    """Writes files that no other client writes, one after the other.

    A write is repeated until it is answered, so it is known at any time what each file is.
    """

    def __init__(self, world: World, name: str, call: _Call, write: _Write) -> None:
        """Act for the client ``name``; ``write`` repeats a call until it is answered."""
        self._world = world
        self._name = name
        self._call = call
        self._write = write
        self._draw = Random(f"{world.seed}/{name}/files")
        self._revisions: dict[str, int] = {}

    async def act(self) -> None:
        """Save, delete, read or list files, at random."""
        key = f"{self._name}-file-{self._draw.randrange(FILES)}"
        action = self._draw.choice(("save", "save", "delete", "get", "list"))
        if action == "get":
            await self._get(key)
        elif action == "list":
            await self.read_all(f"{self._name}-")
        elif action == "delete" and self._world.files.get(key) is not None:
            await self._delete(key)
        else:
            await self._save(key)

    async def _save(self, key: str) -> None:
        serial = next(self._world.serials)
        at = _FIRST + serial if self._draw.random() < 0.5 else None
        before = self._world.files.get(key)
        if before is not None and at is None:
            at = before.uploaded_at
        at = _FIRST if at is None else at
        wanted = NewFile(key, f"w{serial}", "/p", "pdf", "text", ("t",), serial, at, "{}")
        within = 1.0 if self._draw.random() < 0.1 else None
        saved, _ = await self._write(
            f"save file {key}=w{serial}",
            lambda live: live.backend.save_file(wanted, None, within),
        )
        if isinstance(saved, Exception):
            raise WrongAnswerError(f"a save of file {key} without a guard was refused: {saved}")
        if saved.revision <= self._revisions.get(key, 0):
            raise WrongAnswerError(f"the revision of file {key} does not grow: {saved.revision}")
        self._revisions[key] = saved.revision
        self._world.files[key] = wanted
        self._world.counts["acknowledged"] += 1
        if Store.POSTGRESQL in saved.durable_on:
            self._world.check_durable_file(key, saved.revision)

    async def _delete(self, key: str) -> None:
        result, earlier = await self._write(
            f"delete file {key}", lambda live: live.backend.delete_file(key)
        )
        if isinstance(result, NotFoundError) and not earlier:
            raise WrongAnswerError(f"file {key} was acknowledged, but DeleteFile found none")
        self._world.files[key] = None
        self._world.counts["acknowledged"] += 1

    async def _get(self, key: str) -> None:
        wanted = self._world.files.get(key)
        try:
            found = await self._call(f"get file {key}", lambda live: live.backend.get_file(key))
        except NotFoundError:
            found = None
        _compare(key, wanted, found)

    async def read_all(self, prefix: str = "") -> None:
        """List all files, and check those whose ids begin with ``prefix``."""
        found: dict[str, File] = {}
        scan = FileScan(PAGE)
        while True:
            page = await self._call("list files", _listing(scan))
            for record in page.files:
                known = found.get(record.id)
                # A client that gives its file another time moves it in the list of the others.
                moved = known is not None and not record.id.startswith(prefix)
                if known is not None and not (moved and record.revision > known.revision):
                    raise WrongAnswerError(f"file {record.id} is listed twice")
                found[record.id] = record
            if not page.more:
                break
            scan = scan._replace(after=page.files[-1].position)
        for key, wanted in list(self._world.files.items()):
            if key.startswith(prefix):
                _compare(key, wanted, found.get(key))


def _listing(scan: FileScan) -> Make[Any]:
    return lambda live: live.backend.list_files(scan)


def _compare(key: str, wanted: NewFile | None, found: File | None) -> None:
    if (None if found is None else found[:9]) != (None if wanted is None else tuple(wanted)):
        raise WrongAnswerError(f"file {key} is {found}, and not {wanted}")
