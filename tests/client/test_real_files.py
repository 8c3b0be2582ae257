"""File records, asynchronous and blocking, against a real server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sagastore import (
    AbortedError,
    AlreadyExistsError,
    File,
    InvalidArgumentError,
    NotFoundError,
    Store,
    new_id,
)
from tests.client.conftest import Driver

FULL = File(
    "Grüße.pdf",
    "/srv/Grüße.pdf",
    "pdf",
    extracted_text="naïve\n\ttext 👋",
    tags=["b", "a", "b"],
    file_size=2**40,
    uploaded_at=datetime(2024, 2, 29, 12, 0, 0, 123_457, tzinfo=UTC),
    metadata={"big": 2**80, "nested": {"list": [1, 2.5, None]}},
)


async def test_file_round_trips(driver: Driver) -> None:
    saved = await driver.call("files.save", FULL)
    assert saved.created
    assert saved.durable_on == {Store.SQLITE}
    read = await driver.call("files.get", saved.id)
    assert read == replace(FULL, id=saved.id, created_at=read.created_at, revision=saved.revision)


async def test_saving_again_changes_nothing(driver: Driver) -> None:
    file = replace(FULL, id=new_id(), uploaded_at=None)
    first = await driver.call("files.save", file, durability="both")
    again = await driver.call("files.save", file)
    assert (again.id, again.revision, again.created) == (first.id, first.revision, False)


async def test_guards_of_a_file(driver: Driver) -> None:
    file = replace(FULL, id=new_id())
    first = await driver.call("files.save", file, if_revision=0)
    with pytest.raises(AlreadyExistsError):
        await driver.call("files.save", replace(file, filename="x"), if_revision=0)
    second = await driver.call(
        "files.save", replace(file, filename="x"), if_revision=first.revision
    )
    with pytest.raises(AbortedError):
        await driver.call("files.delete", file.id, if_revision=first.revision)
    await driver.call("files.delete", file.id, if_revision=second.revision)
    with pytest.raises(NotFoundError):
        await driver.call("files.get", file.id)
    with pytest.raises(NotFoundError):
        await driver.call("files.delete", file.id)


async def test_invalid_file_is_refused(driver: Driver) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await driver.call("files.save", File("", "/p", "pdf", file_size=-1))
    assert [v.field for v in caught.value.violations] == ["file.filename", "file.file_size"]


async def test_files_are_listed_newest_first(own_driver: Driver) -> None:
    for number in range(3):
        time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)
        tags = ["all", f"n{number}"]
        await own_driver.call(
            "files.save", replace(FULL, id=f"f{number}", uploaded_at=time, tags=tuple(tags))
        )

    async def listed(*args: object, **values: object) -> list[str]:
        return [file.id for file in await own_driver.all("files.list", *args, **values)]

    assert await listed() == ["f2", "f1", "f0"]
    assert await listed(["all"], page_size=1) == ["f2", "f1", "f0"]
    assert await listed(["all", "n1"]) == ["f1"]
    assert await listed(["none"]) == []
