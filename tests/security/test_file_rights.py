"""Which user controls a path, and the rights that root takes for it."""

from __future__ import annotations

import os
import pwd
import struct
from pathlib import Path

import pytest

from sagastore_server.runtime.file_rights import (
    FileRights,
    RightsError,
    change_owner,
    controlling_user,
    refuse_other_users,
)
from tests.support.other_user import GID, UID, needs_root

pytestmark = needs_root


def controller(path: Path) -> int | None:
    user = controlling_user(path)
    return None if user is None else user.uid


def test_first_owner_on_the_path_controls_it(theirs: Path, own: Path) -> None:
    (theirs / "inner").mkdir()
    (own / "link").symlink_to(theirs)
    (own / "relative").symlink_to("../service")
    for path in (theirs, theirs / "new", theirs / "inner" / "new", own / "link" / "new"):
        assert controller(path) == UID
    assert controller(own / "relative" / "new") == UID
    assert controller(theirs / ".." / "root" / "new") == UID
    assert controller(own / "new") is None
    assert controller(own / "missing" / "new") is None


def test_link_of_another_user_is_controlled_by_that_user(own: Path) -> None:
    own.chmod(0o1777)
    (own / "link").symlink_to("/etc/passwd")
    assert controller(own / "link") is None
    os.chown(own / "link", UID, GID, follow_symlinks=False)
    assert controller(own / "link") == UID


def test_file_of_another_user_in_a_folder_of_root(own: Path) -> None:
    """The owner of the file cannot put a link in its place, except in a shared folder."""
    (own / "file").touch()
    os.chown(own / "file", UID, GID)
    assert controller(own / "file") is None
    own.chmod(0o1777)
    assert controller(own / "file") == UID


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_folder_that_many_users_can_change_is_refused(own: Path, mode: int) -> None:
    os.chown(own, 0, GID)
    own.chmod(mode)
    for path in (own / "new", own / "inner" / "new"):
        with pytest.raises(RightsError, match=r"other users can change .*chmod go-w"):
            FileRights(path)
    (own / "file").touch()
    os.chown(own / "file", UID, GID)
    assert controller(own / "file") == UID  # As the user of the server left it.


def test_access_control_list_makes_a_folder_shared(own: Path) -> None:
    own.chmod(0o770)
    assert controller(own / "new") is None  # The group is root's.
    nobody = 0xFFFFFFFF
    entries = [(1, 7, nobody), (2, 7, UID), (4, 0, nobody), (16, 7, nobody), (32, 0, nobody)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(own, "system.posix_acl_access", value)
    except OSError as exc:
        pytest.skip(f"the file system has no access control lists: {exc.strerror}")
    with pytest.raises(RightsError, match="other users can change"):
        controlling_user(own / "new")


def test_circular_links_are_refused(own: Path) -> None:
    (own / "a").symlink_to("b")
    (own / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        controlling_user(own / "a")


def test_rights_are_taken_and_returned(theirs: Path, own: Path) -> None:
    before = (os.geteuid(), os.getegid(), os.getgroups())
    with FileRights(theirs / "new").taken():
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (UID, GID, [GID])
        (theirs / "new").touch()
        with pytest.raises(PermissionError):
            (own / "new").touch()
        with FileRights(own / "new").taken():
            (own / "new").touch()
        assert os.geteuid() == UID
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before
    assert (theirs / "new").stat().st_uid == UID
    with pytest.raises(ZeroDivisionError), FileRights(theirs / "new").taken():
        raise ZeroDivisionError
    assert os.geteuid() == 0


def test_known_account_has_all_of_its_groups(theirs: Path) -> None:
    account = pwd.getpwnam("nobody")
    os.chown(theirs, account.pw_uid, 0)
    user = controlling_user(theirs)
    assert user is not None
    assert (user.uid, user.gid, user.name) == (account.pw_uid, account.pw_gid, "nobody")
    assert set(user.groups) == set(os.getgrouplist("nobody", account.pw_gid))


def test_user_without_account_does_not_get_the_group_of_root(theirs: Path) -> None:
    os.chown(theirs, UID, 0)
    user = controlling_user(theirs)
    assert user is not None
    assert 0 not in (user.gid, *user.groups)


def test_work_that_keeps_the_rights_of_root_is_refused(theirs: Path, own: Path) -> None:
    refuse_other_users(own / "new")
    with pytest.raises(RightsError, match=f"user {UID} can change the folder"):
        refuse_other_users(theirs / "new")
    with FileRights(theirs / "new").taken():
        refuse_other_users(theirs / "new")


def test_owner_is_changed_with_the_rights_of_root(theirs: Path) -> None:
    with FileRights(theirs / "new").taken(), (theirs / "new").open("wb") as file:
        change_owner(file.fileno(), -1, 7)
        assert os.geteuid() == UID
    assert ((theirs / "new").stat().st_uid, (theirs / "new").stat().st_gid) == (UID, 7)
