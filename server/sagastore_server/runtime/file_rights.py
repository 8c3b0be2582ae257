"""File rights of a process that root runs: those of the user who controls the path.

A user who can change a folder can replace each name in it by a link. A process of root that opens
such a name writes to the target with root's rights. SQLite opens files by path and follows links
(the flag SQLITE_OPEN_NOFOLLOW cannot be set through Python), so descriptors of folders do not
suffice. Therefore root accesses a path with the rights of the first user, other than root, who
owns a part of it: a link gives that user nothing that the user does not have.

Does nothing in a process of another user, and on systems without user ids.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_ROOT = 0
_MAX_LINKS = 40
"""Links in one path, the limit of Linux (path_resolution(7))."""


class RightsError(OSError):
    """Root does not access a path that other users control. ``strerror`` is one line."""


class User(NamedTuple):
    """A user as the kernel knows it."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of the account, or the number."""
        import pwd  # noqa: PLC0415 - not available on Windows

        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)


class _Folder(NamedTuple):
    """What users other than root can do in a folder of root's."""

    path: str = "/"
    shared: bool = False
    """They can add names."""
    replaceable: bool = False
    """They can also replace the names of others, which the sticky bit prevents."""

    @classmethod
    def of(cls, path: Path, found: os.stat_result) -> _Folder:
        by_group = bool(found.st_mode & stat.S_IWGRP) and (found.st_gid != _ROOT or _has_acl(path))
        shared = by_group or bool(found.st_mode & stat.S_IWOTH)
        return cls(str(path), shared, shared and not found.st_mode & stat.S_ISVTX)

    def require_unreplaceable(self) -> None:
        if self.replaceable:
            raise RightsError(
                errno.EPERM,
                f"this process runs as root, and other users can change {self.path}; remove that "
                "permission (chmod go-w), or run this as the user of the server",
            )


class FileRights:
    """Rights with which this process accesses the files at a path and beside it."""

    def __init__(self, path: Path) -> None:
        """Determine the rights for ``path``, which need not exist.

        Raises:
            RightsError: Any of several users controls it.
            OSError: A part of it cannot be examined.

        """
        self._user: User | None = None
        if _is_root():
            with _acting_as(None):
                self._user = controlling_user(path)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Act with these rights while the context lasts. They apply to all threads."""
        if not _is_root():
            yield
            return
        with _acting_as(self._user):
            yield


def controlling_user(path: Path) -> User | None:
    """Return the first user other than root who can change what ``path`` names; None: only root.

    Raises:
        RightsError: A folder is writable for a group or for all, so any of them controls it.
        OSError: A folder cannot be examined.

    """
    parts = list(reversed(path.absolute().parts[1:]))
    current, folder, links = Path("/"), _Folder(), 0
    while parts:
        step = current / parts.pop()
        try:
            found = step.lstat()
        except FileNotFoundError:
            folder.require_unreplaceable()
            break
        is_link = stat.S_ISLNK(found.st_mode)
        if found.st_uid != _ROOT and (is_link or folder.shared or stat.S_ISDIR(found.st_mode)):
            return _user(found.st_uid, found.st_gid)
        folder.require_unreplaceable()
        if is_link:
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = step.readlink()
            parts.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
            current = Path("/") if target.is_absolute() else current
            continue
        folder = _Folder.of(step, found)
        current = step
    return None


def refuse_other_users(path: Path) -> None:
    """Refuse to write as root where another user controls the path.

    For long work, such as serving, which does not take the rights of another user.

    Raises:
        RightsError: Another user controls the path.
        OSError: A part of the path cannot be examined.

    """
    if not _is_root() or os.geteuid() != _ROOT:
        return
    user = controlling_user(path)
    if user is not None:
        raise RightsError(
            errno.EPERM,
            f"this process runs as root, and user {user.name} can change the folder and so "
            "redirect what root writes; run this as that user",
        )


def change_owner(descriptor: int, uid: int, gid: int) -> None:
    """Change the owner of an open file that this process has created; -1 keeps an id.

    Root does so with its own rights: through a descriptor no link is followed.

    Raises:
        PermissionError: This user may not.

    """
    found = os.fstat(descriptor)
    if uid in {-1, found.st_uid} and gid in {-1, found.st_gid}:
        return
    if not _is_root():
        os.fchown(descriptor, uid, gid)
        return
    with _acting_as(None):
        os.fchown(descriptor, uid, gid)


def _has_acl(path: Path) -> bool:
    """Whether an access control list names more users; the permissions of the group bound it."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access", follow_symlinks=False))
    except (AttributeError, OSError):  # Not on this system, or no list.
        return False


def _is_root() -> bool:
    """Whether the process belongs to root, also while it has taken other rights."""
    return hasattr(os, "getuid") and os.getuid() == _ROOT


def _user(uid: int, gid: int) -> User:
    """Return a user with all groups of the account; without an account, with ``gid`` alone."""
    import pwd  # noqa: PLC0415 - not available on Windows

    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        # The group of root would give more than the user has.
        own = gid if gid != _ROOT else uid
        return User(uid, own, (own,))
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    return User(uid, account.pw_gid, tuple(groups))


@contextmanager
def _acting_as(user: User | None) -> Iterator[None]:
    """Have the rights of ``user``, None is root, and then those of before."""
    before = User(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    if before.uid == (_ROOT if user is None else user.uid):
        yield  # Works also in a container without the capability to change users.
        return
    _become(user or User(_ROOT, os.getgid(), before.groups))
    try:
        yield
    finally:
        _become(before)


def _become(user: User) -> None:
    os.seteuid(_ROOT)  # Only root may change the groups.
    os.setgroups(user.groups)
    os.setegid(user.gid)
    os.seteuid(user.uid)
