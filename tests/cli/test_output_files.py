"""Files that `export` and `import` write: their permissions, and links of other users."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagastore.cli.output_folder import OutputFolder
from tests.cli.command import SAMPLE, Sagastore
from tests.support.other_user import GID, UID, folders, needs_root


@pytest.fixture
def umask() -> Iterator[None]:
    """Set a umask that restricts nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def theirs() -> Iterator[Path]:
    with folders() as (made, _):
        yield made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refusal(own_cli: Sagastore, *args: str | Path) -> str:
    done = own_cli.run(*args)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


def test_export_and_rejects_are_private(own_cli: Sagastore, tmp_path: Path, umask: None) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_bytes(SAMPLE.read_bytes() + b'{"provider": "p"}\n')
    own_cli.ok("import", lines, "--rejects", tmp_path / "rejects.jsonl")
    own_cli.ok("export", tmp_path / "out.jsonl")
    assert mode(tmp_path / "rejects.jsonl") == 0o600
    assert mode(tmp_path / "out.jsonl") == 0o600
    (tmp_path / "out.jsonl").chmod(0o640)
    (tmp_path / "link.jsonl").symlink_to("out.jsonl")
    own_cli.ok("export", tmp_path / "link.jsonl")
    assert mode(tmp_path / "out.jsonl") == 0o640
    assert (tmp_path / "link.jsonl").is_symlink()
    assert sorted(one.name for one in tmp_path.glob("out*")) == ["out.jsonl"]


@needs_root
@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.part", "out.jsonl.part.state"])
def test_export_follows_no_link_of_another_user(
    own_cli: Sagastore, tmp_path: Path, theirs: Path, name: str
) -> None:
    own_cli.ok("import", SAMPLE)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (theirs / name).symlink_to(secret)
    os.chown(theirs / name, UID, GID, follow_symlinks=False)
    done = own_cli.run("export", theirs / "out.jsonl")
    assert secret.read_text() == "secret"
    assert done.returncode == (0 if name.endswith("state") else 1)
    assert not secret.with_name("secret.part").exists()


@needs_root
def test_output_into_a_file_or_through_a_folder_of_another_user_is_refused(
    own_cli: Sagastore, tmp_path: Path, theirs: Path
) -> None:
    (theirs / "folder").symlink_to(tmp_path)
    (theirs / "out.jsonl.part").touch()
    (theirs / "rejects.jsonl").symlink_to(tmp_path / "rejects.jsonl")
    for one in theirs.iterdir():
        os.chown(one, UID, GID, follow_symlinks=False)
    line = refusal(own_cli, "export", theirs / "folder" / "out.jsonl")
    assert line.endswith("out.jsonl: the link folder belongs to another user")
    line = refusal(own_cli, "export", theirs / "out.jsonl")
    assert line.endswith("out.jsonl.part: it belongs to another user or has a second name")
    line = refusal(own_cli, "import", SAMPLE, "--rejects", theirs / "rejects.jsonl")
    assert line.endswith("rejects.jsonl: the link rejects.jsonl belongs to another user")
    assert list(tmp_path.glob("*.jsonl")) == []


def test_folder_is_found_through_own_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a" / "b" / "..")
    (tmp_path / "a" / "file").symlink_to("b/target")
    for path, real in {
        "link/new": "a/new",
        "link/up/b/new": "a/b/new",
        "link/../new": "new",
        "link/file": "a/b/target",
    }.items():
        folder = OutputFolder(tmp_path / path)
        assert folder.path == tmp_path / real == (tmp_path / path).resolve()
        os.close(folder.open_own(folder.name))
        folder.close()
        assert (tmp_path / real).exists()
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="Too many levels"):
        OutputFolder(tmp_path / "circle")


def test_hard_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "out").hardlink_to(tmp_path / "secret")
    folder = OutputFolder(tmp_path / "out")
    with pytest.raises(PermissionError, match="has a second name"):
        folder.open_own("out")
    folder.close()
