"""Edits of the access file by several processes, and edits that are killed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sagastore_server.interfaces.access import Role
from sagastore_server.security import access_edit
from sagastore_server.security.access_edit import add_token, read_rules, remove_tokens
from sagastore_server.security.access_rules import AccessError, TokenEntry, digest_of
from tests.security.test_token_command import run
from tests.support.server_process import clean_environment

PROCESSES = 6
EDITS = int(os.environ.get("SAGASTORE_TEST_EDITS", "300"))
"""Edits of all processes together."""

_EDITOR = """
import sys
from pathlib import Path
from sagastore_server.interfaces.access import Role
from sagastore_server.security.access_edit import add_token, remove_tokens
from sagastore_server.security.access_rules import TokenEntry, digest_of

path, me, edits = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.stdin.readline()
for number in range(edits):
    name = f"{me}-{number}"
    add_token(path, TokenEntry(name, Role.READER, digest_of(name)))
    print("added", name, flush=True)
    if number >= 20 and number % 20:
        remove_tokens(path, f"{me}-{number - 20}")
        print("removed", f"{me}-{number - 20}", flush=True)
"""

_TOKEN_NEW = (sys.executable, "-m", "sagastore_server", "token", "new", "--role", "reader")

_HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""

_KILLED = """
import os, signal, sys
from pathlib import Path
from sagastore_server.interfaces.access import Role
from sagastore_server.runtime import file_rights, folders
from sagastore_server.security import access_edit
from sagastore_server.security.access_rules import TokenEntry, digest_of

WATCHED = {module.__file__ for module in (folders, file_rights)}
FUNCTIONS = {access_edit._rewrite.__code__, access_edit._replace.__code__}

def killed_at(place):
    lines = 0
    def on_line(frame, event, argument):
        nonlocal lines
        if frame.f_code.co_filename not in WATCHED and frame.f_code not in FUNCTIONS:
            return None
        if event == "line":
            lines += 1
            if lines == place:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_line
    sys.settrace(on_line)

path, change = Path(sys.argv[1]), sys.argv[2]
before = path.read_bytes()
place = 0
while True:
    place += 1
    path.write_bytes(before)
    if (child := os.fork()) == 0:
        killed_at(place)
        if change == "add":
            access_edit.add_token(path, TokenEntry("more", Role.READER, digest_of("more")))
        else:
            access_edit.remove_tokens(path, "first")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    names = {entry.name for entry in access_edit.read_rules(path).tokens}
    assert names in ({"first", "second"}, {"first", "second", "more"}, {"second"}), names
    access_edit.add_token(path, TokenEntry("next", Role.READER, digest_of("next")))
    access_edit.remove_tokens(path, "next")
    after = {entry.name for entry in access_edit.read_rules(path).tokens}
    assert after == names, after
    left = sorted(one.name for one in path.parent.iterdir())
    assert left == [".access.toml.lock", "access.toml"], left
    if not os.WIFSIGNALED(status):
        assert status == 0
        break
print(place - 1)
"""


def _entry(name: str) -> TokenEntry:
    return TokenEntry(name, Role.READER, digest_of(name))


def test_parallel_edits_are_all_kept(tmp_path: Path) -> None:
    """Each process adds tokens, and removes most of those that it added 20 edits before."""
    path = tmp_path / "access.toml"
    editors = [
        subprocess.Popen(
            [sys.executable, "-c", _EDITOR, str(path), f"p{number}", str(EDITS // PROCESSES // 2)],
            env=clean_environment(tmp_path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        for editor in editors:  # They have imported the modules, and start together.
            assert editor.stdin is not None
            editor.stdin.write("\n")
            editor.stdin.flush()
        said = [editor.communicate() for editor in editors]
    finally:
        for editor in editors:
            editor.kill()
    assert [error for _, error in said] == [""] * PROCESSES
    edits = [line.split() for output, _ in said for line in output.splitlines()]
    added = {name for what, name in edits if what == "added"}
    removed = {name for what, name in edits if what == "removed"}
    assert len(added) == EDITS // PROCESSES // 2 * PROCESSES
    assert {entry.name for entry in read_rules(path).tokens} == added - removed


def test_parallel_commands_are_all_kept(tmp_path: Path) -> None:
    commands = [
        subprocess.Popen(
            [*_TOKEN_NEW, f"n{number}", "--access", str(tmp_path / "access.toml")],
            env=clean_environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for number in range(PROCESSES)
    ]
    assert [command.communicate()[1][:5] for command in commands] == [b"Added"] * PROCESSES
    assert len(read_rules(tmp_path / "access.toml").tokens) == PROCESSES


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("change", ["add", "remove"])
def test_edit_killed_at_any_line_leaves_a_file_that_can_be_edited(
    tmp_path: Path, change: str
) -> None:
    path = tmp_path / "access.toml"
    add_token(path, _entry("first"))
    add_token(path, _entry("second"))
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(path), change],
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40  # Lines at which the edit was killed.


def test_draft_of_a_killed_edit_does_not_block_the_next(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    add_token(path, _entry("first"))
    draft = tmp_path / ".access.toml.new"
    draft.write_text("[[token]]\nname = ")
    made = run(tmp_path, "new", "second", "--role", "reader")
    assert made.returncode == 0, made.stderr
    assert not draft.exists()
    assert [entry.name for entry in read_rules(path).tokens] == ["first", "second"]


def test_edit_waits_for_the_lock_and_reports_who_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "access.toml"
    add_token(path, _entry("first"))
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path / ".access.toml.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        monkeypatch.setattr(access_edit, "_LOCK_SECONDS", 0.1)
        with pytest.raises(AccessError) as caught:
            remove_tokens(path, "first")
        assert str(caught.value) == (
            f"{path} was not changed: another change has not ended within 0.1 s; end that "
            "command and try again"
        )
    finally:
        holder.kill()
        holder.communicate()
    monkeypatch.undo()
    remove_tokens(path, "first")  # The lock ended with its process.


def test_files_of_an_edit_are_private(tmp_path: Path) -> None:
    add_token(tmp_path / "access.toml", _entry("first"))
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
    assert modes == {"access.toml": 0o600, ".access.toml.lock": 0o600}


def test_operators_of_one_group_share_the_lock(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    add_token(tmp_path / "access.toml", _entry("first"))
    assert stat.S_IMODE((tmp_path / ".access.toml.lock").stat().st_mode) == 0o660
