"""Commands that root runs in a folder of the service's user write nothing outside of it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.sqlite.backup.create import back_up
from tests.support.backends import opened
from tests.support.drafts import draft
from tests.support.other_user import GID, UID, as_other_user, give_away, needs_root
from tests.support.server_process import STARTUP_SECONDS, clean_environment

pytestmark = needs_root

SECRET = "root:secret\n"


@pytest.fixture
async def backup(theirs: Path, own: Path) -> Path:
    """A store in the folder of the service's user, and a backup of it that only root can read."""
    async with opened(lambda: SQLiteStorage(own / "messages.db")) as store:
        await store.save(draft("kept", "text"))
    back_up(own / "messages.db", own / "backup.db", lambda *_: None)
    (own / "backup.db").chmod(0o600)
    for suffix in ("", ".lock"):
        shutil.move(own / f"messages.db{suffix}", theirs / f"messages.db{suffix}")
    give_away(theirs)
    return own / "backup.db"


def run(*options: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sagastore_server", *options],
        env=clean_environment(cwd),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=STARTUP_SECONDS,
    )


def secret(own: Path) -> Path:
    path = own / "secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


def untouched(path: Path) -> bool:
    found = path.stat()
    rights = (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
    return rights == (0, 0, 0o600) and path.read_text() == SECRET


def owners(folder: Path) -> set[tuple[int, int]]:
    return {(found.st_uid, found.st_gid) for found in (p.lstat() for p in folder.iterdir())}


def test_restore_gives_the_files_to_the_owner_of_the_folder(
    theirs: Path, own: Path, backup: Path
) -> None:
    path = theirs / "messages.db"
    done = run("restore", backup, "--sqlite", path, "--replace", cwd=own)
    assert done.returncode == 0, done.stderr
    assert "1 message," in done.stdout
    assert owners(theirs) == {(UID, GID)}
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
    assert (backup.stat().st_uid, stat.S_IMODE(backup.stat().st_mode)) == (0, 0o600)


def test_restore_writes_through_no_link_in_place_of_the_owner_record(
    theirs: Path, own: Path, backup: Path
) -> None:
    file = secret(own)
    (theirs / "messages.db.owner").symlink_to(file)
    run("restore", backup, "--sqlite", theirs / "messages.db", "--replace", cwd=own)
    assert untouched(file)


@pytest.mark.parametrize("name", ["messages.db.lock", "messages.db.restoring"])
def test_restore_follows_no_link_that_replaces_its_file(
    theirs: Path, own: Path, backup: Path, name: str
) -> None:
    """The other user replaces each new file by a link to the backup, which then looks restored."""
    before = backup.read_bytes(), backup.stat()
    place, aside = theirs / name, theirs / "aside"

    def replace() -> None:
        if not stat.S_ISLNK(place.lstat().st_mode):
            place.rename(aside)
            place.symlink_to(backup)

    with as_other_user(replace):
        for _ in range(3):
            run("restore", backup, "--sqlite", theirs / "messages.db", "--replace", cwd=own)
    now = backup.stat()
    assert (now.st_uid, now.st_gid, now.st_mode) == (0, 0, before[1].st_mode)
    assert backup.read_bytes() == before[0]


def test_restore_follows_no_link_in_place_of_the_store(
    theirs: Path, own: Path, backup: Path
) -> None:
    path = theirs / "messages.db"
    path.unlink()
    path.symlink_to(own / "created.db")
    done = run("restore", backup, "--sqlite", path, "--replace", cwd=own)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert sorted(one.name for one in own.iterdir()) == ["backup.db"]


def test_restore_reads_no_backup_that_the_owner_of_its_folder_cannot_read(
    theirs: Path, own: Path, backup: Path
) -> None:
    link = theirs / "backup.db"
    link.symlink_to(backup)
    done = run("restore", link, "--sqlite", theirs / "new.db", cwd=own)
    assert done.returncode == 1
    assert not (theirs / "new.db").exists()


def test_backup_as_root_leaves_no_file_of_root_beside_the_store(
    theirs: Path, own: Path, backup: Path
) -> None:
    done = run("backup", own / "second.db", "--sqlite", theirs / "messages.db", cwd=own)
    assert done.returncode == 0, done.stderr
    assert owners(theirs) == {(UID, GID)}
    found = (own / "second.db").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode) & 0o007) == (0, 0)


def test_backup_to_a_folder_of_another_user_writes_as_that_user(
    theirs: Path, own: Path, backup: Path
) -> None:
    file = secret(own)
    (theirs / "out").symlink_to(own)
    done = run("backup", theirs / "out" / "b.db", "--sqlite", theirs / "messages.db", cwd=own)
    assert done.returncode == 1
    assert not (own / "b.db").exists()
    done = run("backup", theirs / "b.db", "--sqlite", theirs / "messages.db", cwd=own)
    assert done.returncode == 0, done.stderr
    assert (theirs / "b.db").stat().st_uid == UID
    assert untouched(file)


def test_root_does_not_serve_a_store_in_a_folder_of_another_user(
    theirs: Path, own: Path, backup: Path
) -> None:
    path = theirs / "messages.db"
    done = run("serve", "--sqlite", path, "--listen", "127.0.0.1:0", cwd=own)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert f"user {UID} can change" in line
    assert "run this as that user" in line
    assert owners(theirs) == {(UID, GID)}


def test_root_writes_no_audit_file_in_a_folder_of_another_user(theirs: Path, own: Path) -> None:
    (theirs / "logs").symlink_to(own)
    options = ("--sqlite", own / "messages.db", "--listen", "127.0.0.1:0", "--ops-listen", "off")
    done = run("serve", *options, "--audit", theirs / "logs" / "audit.log", cwd=own)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert f"user {UID} can change" in line
    assert "run this as that user" in line
    assert not (own / "audit.log").exists()


@pytest.mark.parametrize("link", ["access.toml", ".access.toml.new", ".access.toml.lock"])
def test_token_command_follows_no_link_of_the_owner_of_the_folder(
    theirs: Path, own: Path, link: str
) -> None:
    file = secret(own)
    (theirs / link).symlink_to(own / "created.toml" if link == "access.toml" else file)
    run("token", "new", "web", "--role", "reader", "--access", theirs / "access.toml", cwd=own)
    assert untouched(file)
    assert [one.name for one in own.iterdir()] == ["secret"]


def test_token_command_as_root_keeps_owner_and_mode(theirs: Path, own: Path) -> None:
    options = ("--role", "reader", "--access", theirs / "access.toml")
    assert run("token", "new", "web", *options, cwd=own).returncode == 0
    assert owners(theirs) == {(UID, GID)}
    # A file of root's that the service's group may read, as in /etc.
    (own / "access.toml").touch(mode=0o640)
    os.chown(own / "access.toml", 0, GID)
    done = run("token", "new", "web", *options[:3], own / "access.toml", cwd=own)
    assert done.returncode == 0, done.stderr
    found = (own / "access.toml").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, GID, 0o640)
