"""Wrapping of paragraphs and commands, plural forms, and exit statuses of error codes."""

from __future__ import annotations

import io
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from sagastore import errors
from sagastore.cli.console import screen
from sagastore.commandline.errors import masked
from sagastore.commandline.exit_status import ExitStatus, status_of
from sagastore.commandline.text import command_lines, counted, write_command, write_paragraph
from tests.cli.terminal import without_steering

WORDS = st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=1)


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(WORDS, st.integers(20, 120))
def test_wrapped_command_is_the_same_command_for_a_shell(words: list[str], width: int) -> None:
    lines = list(command_lines(words, width))
    # Unlike a shell, shlex does not join continued lines.
    assert all(line.endswith(" \\") for line in lines[:-1])
    joined = "".join(line.removesuffix("\\") for line in lines[:-1]) + lines[-1]
    assert shlex.split(joined) == words
    for line in lines:
        # A line is too long only if it has a single argument.
        assert cell_len(line) <= width or len(shlex.split(line.removesuffix(" \\"))) == 1
    assert list(command_lines(words, None)) == [shlex.join(words)]


@given(WORDS, st.integers(20, 120))
def test_wrapped_paragraph_fits_and_keeps_its_text(words: list[str], width: int) -> None:
    stream = _Tty()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        write_paragraph(stream, " ".join(words))
    rows = stream.getvalue().splitlines()
    assert all(cell_len(row) <= width for row in rows)
    assert "".join(stream.getvalue().split()) == "".join(words)


def test_short_words_are_not_broken() -> None:
    stream = _Tty()
    text = "one two three four five six seven eight nine ten eleven twelve"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "24")
        write_paragraph(stream, text)
        write_command(stream, ["sagastore", "--target", "localhost:1", "list", "a b"])
    paragraph, _, command = stream.getvalue().partition("sagastore")
    assert " ".join(paragraph.split()) == text
    assert f"sagastore{command}" == ("sagastore --target \\\n    localhost:1 list \\\n    'a b'\n")


def test_text_is_not_wrapped_without_a_terminal() -> None:
    stream = io.StringIO()
    text = "word " * 200
    write_paragraph(stream, text)
    assert stream.getvalue() == f"{text}\n"


def test_plural_forms() -> None:
    assert [counted(n, "row") for n in (0, 1, 2, 1000)] == [
        "0 rows",
        "1 row",
        "2 rows",
        "1,000 rows",
    ]
    assert counted(2, "mismatch", "mismatches") == "2 mismatches"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NotFoundError, ExitStatus.NOT_FOUND),
        (errors.UnavailableError, ExitStatus.UNAVAILABLE),
        (errors.DeadlineExceededError, ExitStatus.UNAVAILABLE),
        (errors.UnauthenticatedError, ExitStatus.DENIED),
        (errors.PermissionDeniedError, ExitStatus.DENIED),
        (errors.InvalidArgumentError, ExitStatus.FAILED),
        (errors.AlreadyExistsError, ExitStatus.FAILED),
        (errors.AbortedError, ExitStatus.FAILED),
        (errors.FailedPreconditionError, ExitStatus.FAILED),
        (errors.ResourceExhaustedError, ExitStatus.FAILED),
        (errors.InternalError, ExitStatus.FAILED),
    ],
)
def test_exit_status_of_an_error(error: type[errors.SagaStoreError], status: ExitStatus) -> None:
    assert status_of(error.code) is status


def test_exit_statuses_are_those_of_the_design() -> None:
    assert [int(status) for status in ExitStatus] == [0, 1, 2, 3, 4, 5, 6, 130, 141, 143]
    assert all(status.meaning.endswith(".") for status in ExitStatus)


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1))
def test_no_line_has_a_password_of_a_connection_string(text: str) -> None:
    password = f"pw-{text}-pw"
    for given_text in (
        f"no message has the id 'postgresql://u:{password}@h:1/db'",
        f"cannot restore host=h Password = {password} user=u: no such file",
        f"got postgresql://h/db?sslpassword={password}",
    ):
        assert password not in masked(given_text)
    assert masked("cannot reach 127.0.0.1:1: use http:// or https://") == (
        "cannot reach 127.0.0.1:1: use http:// or https://"
    )


@given(WORDS, st.sampled_from([30, 44, 81]))
def test_table_fits_the_terminal(words: list[str], width: int) -> None:
    environment = {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width)}
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr("sys.stdout", stream)
        screen().table("Title", ("id", "text"), [(words[0], " ".join(words))])
    rows = without_steering(stream.getvalue()).splitlines()
    assert len(rows) > 4
    assert all(cell_len(row) <= width for row in rows)
