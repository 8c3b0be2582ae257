"""Access file: format, editing, and the comparison of tokens."""

from __future__ import annotations

import errno
import hmac
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagastore_server.interfaces.access import Role
from sagastore_server.interfaces.errors import UnauthenticatedError
from sagastore_server.security import access_edit
from sagastore_server.security.access_edit import add_token, new_token, remove_tokens
from sagastore_server.security.access_file import AccessFile
from sagastore_server.security.access_rules import (
    MAX_ENTRIES,
    AccessError,
    CertificateEntry,
    Rules,
    TokenEntry,
    digest_of,
    parse,
)
from tests.security.pki import entry, write_access

HASH = digest_of("a").hex()
GOOD = entry("token", "web", "writer", token="a")

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", fullmatch=True)
times = st.none() | st.integers(0, 4_000_000_000).map(lambda n: datetime.fromtimestamp(n, UTC))
tokens = st.builds(
    TokenEntry, names, st.sampled_from(Role), st.binary(min_size=32, max_size=32), times
)
token_lists = st.lists(tokens, max_size=6, unique_by=lambda token: token.digest)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[token]", "is not valid TOML"),
        ("tokens = []", "the file: unknown key 'tokens'; known are token, certificate"),
        ("token = 1", "token must be a list of tables: write [[token]] above each"),
        ("[token]\nname='x'", "token must be a list of tables"),
        ("token = [1]", "token must be a list of tables"),
        ("[[token]]", "[[token]] number 1: name is missing"),
        (GOOD + GOOD, "two entries are for the same token"),
        (f"{GOOD}[[token]]\nname='x'\nrole='reader'", "[[token]] number 2: sha256 is missing"),
        (GOOD + "roles = 1", "unknown key 'roles'; known are name, role, sha256, expires"),
        (GOOD.replace("writer", "root"), "role must be one of reader, writer, admin"),
        (GOOD.replace('"writer"', "2"), "role must be one of"),
        (GOOD.replace("web", "w b"), "name must be 1 to 64 letters"),
        (GOOD.replace('"web"', "['web']"), "name must be 1 to 64 letters"),
        (GOOD.replace(HASH, HASH[1:]), "sha256 must be the 64 hexadecimal digits"),
        (GOOD.replace(HASH, "my-own-password"), "sha256 must be the 64 hexadecimal digits"),
        (GOOD + "expires = 2030-01-01T00:00:00", "expires must be a time with an offset"),
        (GOOD + "expires = 2030-01-01", "expires must be a time with an offset"),
        (GOOD + "expires = 'never'", "expires must be a time with an offset"),
        ("[[certificate]]\nname=''\nrole='reader'", "name must be 1 to 512 printable characters"),
        (entry("certificate", "a", "reader") * 2, "two entries are for the same certificate"),
        (entry("certificate", "a", "reader") + "sha256=''", "unknown key 'sha256'"),
        ("[[certificate]]\n" * (MAX_ENTRIES + 1), "has 1,001 entries [[certificate]]"),
    ],
)
def test_invalid_file_is_reported_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(AccessError) as caught:
        parse(text)
    line = str(caught.value)
    assert problem in line
    assert "\n" not in line
    assert HASH not in line
    assert "my-own-password" not in line


def test_parse_reads_all_fields() -> None:
    text = GOOD + "expires = 2030-01-01T00:00:00+01:00\n" + entry("certificate", "CN x", "admin")
    moment = datetime.fromisoformat("2030-01-01T00:00:00+01:00")
    assert parse(text) == Rules(
        (TokenEntry("web", Role.WRITER, digest_of("a"), moment),),
        (CertificateEntry("CN x", Role.ADMIN),),
    )
    assert parse("") == parse("# empty\n") == Rules()


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from([*"[]=\"'\n{},", "token", GOOD, "1"])).map("".join))
def test_parse_accepts_or_rejects_any_text(text: str) -> None:
    try:
        rules = parse(text)
    except AccessError:
        return
    # Every accepted token has an entry.
    assert len(rules.tokens) <= text.count("sha256")


@settings(deadline=None, max_examples=25)  # Each example syncs files to disk.
@given(token_lists, st.data())
def test_edit_changes_only_the_given_entries(
    tmp_path_factory: pytest.TempPathFactory, entries: list[TokenEntry], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("edit") / "access.toml"
    path.write_text("# header\n" + entry("certificate", "c.example", "reader"))
    for token in entries:
        add_token(path, token)
        if data.draw(st.booleans()):
            path.write_text(path.read_text() + "\n# a remark [[token]]\n")
    remarks = path.read_text().count("# a remark")
    before = access_edit.read_rules(path)
    assert list(before.tokens) == entries
    if entries:
        which = data.draw(st.sampled_from(entries))
        by_hash = data.draw(st.booleans())
        wanted = which.digest.hex() if by_hash else which.name
        gone = remove_tokens(path, wanted)
        assert which in gone
        assert list(access_edit.read_rules(path).tokens) == [e for e in entries if e not in gone]
    after = path.read_text()
    assert after.count("# a remark") == remarks
    assert after.startswith("# header\n")
    assert access_edit.read_rules(path).certificates == before.certificates


def test_edit_refuses_other_forms_of_toml(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    text = f"token = [{{name = 'web', role = 'writer', sha256 = '{HASH}'}}]\n"
    path.write_text(text)
    for change in (
        lambda: add_token(path, TokenEntry("x", Role.READER, digest_of("b"))),
        lambda: remove_tokens(path, "web"),
    ):
        with pytest.raises(AccessError, match="edit it in a text editor"):
            change()
    assert path.read_text() == text
    assert not (tmp_path / ".access.toml.new").exists()


INTERLEAVED = f"""# Access to the example service.
[[token]]  # the web front end
name = "web"
role = "writer"
sha256 = "{HASH}"

# About the certificate: ask the operators.
[[certificate]]
name = "c.example"
role = "reader"

# About the worker.
[[token]]
role   = "reader"   # it only reads
name   = "worker"
sha256 = "{digest_of("b").hex()}"
"""


def test_revocation_keeps_comments_and_order(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text(INTERLEAVED)
    remove_tokens(path, "web")
    lines = INTERLEAVED.splitlines(keepends=True)
    assert path.read_text() == "".join(lines[:1] + lines[5:])
    add_token(path, TokenEntry("web", Role.WRITER, digest_of("c")))
    remove_tokens(path, "worker")
    after = path.read_text()
    assert "# About the certificate: ask the operators.\n[[certificate]]\n" in after
    assert [entry.name for entry in access_edit.read_rules(path).tokens] == ["web"]


_LIMITED = """
import resource, sys
from pathlib import Path
from sagastore_server.security import access_edit
from sagastore_server.security.access_rules import TokenEntry, AccessError
from sagastore_server.interfaces.access import Role
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
try:
    if sys.argv[2] == "add":
        access_edit.add_token(Path(sys.argv[1]), TokenEntry("more", Role.READER, bytes(32)))
    else:
        access_edit.remove_tokens(Path(sys.argv[1]), "n3")
except AccessError as exc:
    print(exc)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit for the size of files")
@pytest.mark.parametrize("change", ["add", "remove"])
def test_edit_on_full_disk_leaves_the_file_intact(tmp_path: Path, change: str) -> None:
    """The system writes the first 1,000 of 2,300 bytes and reports that, as on a full disk."""
    text = [entry("token", f"n{n}", "reader", token=f"t{n}") for n in range(20)]
    path = write_access(tmp_path / "access.toml", *text)
    before = path.read_bytes()
    assert len(before) > 2_300
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(path), change],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    assert line == f"{path} cannot be changed: File too large; it has its old content"
    assert path.read_bytes() == before
    # No draft is left.
    assert sorted(one.name for one in tmp_path.iterdir()) == [".access.toml.lock", "access.toml"]


def test_edit_with_failed_rename_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_access(tmp_path / "access.toml", GOOD)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(AccessError, match="Input/output error; it has its old content"):
            remove_tokens(path, "web")
    assert path.read_text() == GOOD
    assert not (tmp_path / ".access.toml.new").exists()
    remove_tokens(path, "web")


def test_revocation_does_not_accept_or_repeat_a_token(tmp_path: Path) -> None:
    """An error does not repeat a token that was given in place of its name."""
    path = write_access(tmp_path / "access.toml", entry("token", "web", "writer", token="a"))
    for which in (new_token(), "", HASH[:7], "unknown"):
        with pytest.raises(AccessError) as caught:
            remove_tokens(path, which)
        assert str(caught.value) == (f"{path} has no token with that name or hash")


def test_edit_keeps_owner_permissions_and_links(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "access.toml"
    link.symlink_to(real)
    entry_ = TokenEntry("x", Role.READER, digest_of("b"))
    add_token(link, entry_)
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    real.chmod(0o640)
    remove_tokens(link, "x")
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert link.is_symlink()


def test_token_is_compared_with_all_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of comparisons does not depend on which entry matches, or whether one does."""
    made = [new_token() for _ in range(20)]
    assert len(set(made)) == 20
    text = [entry("token", f"n{n}", "reader", token=token) for n, token in enumerate(made)]
    access = AccessFile(write_access(tmp_path / "access.toml", *text))
    seen: list[bytes] = []
    real = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        seen.append(a)
        return real(a, b)

    monkeypatch.setattr("sagastore_server.security.access_file.hmac.compare_digest", counted)
    for number in (0, 7, 19):
        assert access.caller(made[number], ()).name == f"n{number}"
    for wrong in ("", made[3][:-1], made[3] + "x", "ü", "x" * 8000):
        with pytest.raises(UnauthenticatedError, match="does not know this token"):
            access.caller(wrong, ("n0",))
    stored = [digest_of(token) for token in made]
    assert seen == stored * 8
