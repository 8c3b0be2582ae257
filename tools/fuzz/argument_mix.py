"""Argument vectors for both programs, made from the definitions of their commands."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer

from sagastore.cli.app import app as client
from sagastore_server.cli.main import cli as server

CLIENT, SERVER = "sagastore", "sagastore-server"
SECRET = "hunter2-Vo8xQ"
"""Part of every planted password and token."""

SECRET_FILES = ("token", "settings.toml", "rubbish.toml")
"""Files that have it, for options that read secrets."""

_ODD = (
    "",
    " ",
    "-",
    "--",
    "-1",
    "0",
    "1",
    "99999999999999999999",
    "1e999999999",
    "nan",
    "null",
    "{}",
    '{"a": 1e99999}',
    '{"a": ' * 200,
    "[1]",
    "\udc80\udcff",
    "漢字👩‍💻",
    "a\nb",
    "\x1b[31mred\x1b]0;title\x07",
    "' OR 1=1 --",
    '"unbalanced',
    "(AND OR NOT",
    "*",
    "$(false)",
    "x" * 3000,
    "2025-02-30",
    "2025-01-01T00:00:00Z",
    "7d",
    "primary",
    "127.0.0.1:1",
    "localhost:99999",
    "http://[::1",
)
_DSNS = (
    f"postgresql://u:{SECRET}@127.0.0.1:1/db",
    f"postgresql://u:a {SECRET}@h/x#y?z@127.0.0.1:1/db",
    f"postgres://u:p%ZZ{SECRET}@/db?sslmode=nope",
    f"host=127.0.0.1 password={SECRET} user=u",
    f"postgresql://127.0.0.1:1/db?password={SECRET}",
)
_LEFT_OUT = {"version", "help", "install_completion", "show_completion"}
"""The last two are typer's, and change files of the shell."""
_NUMBERS = ("0", "1", "2", "5", "500", "-1", "1000000000000")
_WORDS = ("a", "b", "session-1", "openai", "user", "hello world")
_BY_METAVAR = {
    "N": _NUMBERS,
    "BYTES": _NUMBERS,
    "GIB": _NUMBERS,
    "SECONDS": ("0.1", "1", "0", "-3"),
    "JSON": ('{"a": 1}', "{}", '{"a": [1, {"b": null}]}', "{", "[]"),
}
_ENDLESS = ("migrate", "watch")


class Vector(NamedTuple):
    """A program and its arguments."""

    program: str
    arguments: tuple[str, ...]

    @property
    def wants_json(self) -> bool:
        """Whether the parser sees `--json`."""
        given = self.arguments
        return "--json" in (given[: given.index("--")] if "--" in given else given)


class Places(NamedTuple):
    """What vectors refer to."""

    address: str
    """The running server."""
    folder: Path
    """A folder for files; `file_names` are in it."""
    file_names: tuple[str, ...]


class _Command(NamedTuple):
    path: tuple[str, ...]
    parameters: tuple[Any, ...]


class Mix:
    """Makes vectors; the same seed and places make the same ones."""

    def __init__(self, seed: str, places: Places) -> None:
        """Read the definitions of the commands."""
        self._random = random.Random(seed)
        self._places = places
        self._commands = {
            name: list(_commands(typer.main.get_command(app), ()))
            for name, app in ((CLIENT, client), (SERVER, server))
        }

    def make(self) -> Vector:
        """Return the next vector."""
        program = CLIENT if self._random.random() < 0.75 else SERVER
        words = self._vector(program)
        for _ in range(self._random.choice((0, 0, 0, 0, 1, 2))):
            words = self._disturbed(words)
        # A real server of its own must not start: the address is taken.
        if program == SERVER and "serve" in words:
            words = [*words, "--listen", self._places.address]
        if program == CLIENT and all(word in words for word in _ENDLESS):
            words = [*words, "--until", "sqlite-only"]
        if program == CLIENT:
            words = ["--timeout", "0.5", *words]
        return Vector(program, tuple(words))

    def _vector(self, program: str) -> list[str]:
        command = self._random.choice(self._commands[program])
        before: list[str] = []
        after: list[str] = []
        for parameter in command.parameters:
            words = self._parameter(parameter)
            (before if parameter.name in {"as_json", "target"} and self._coin else after).extend(
                words
            )
        if program == CLIENT and self._random.random() < 0.95:
            before += ["--target", self._places.address]
        if self._random.random() < 0.3:
            (before if self._coin else after).append("--json")
        return [*before, *command.path, *after]

    @property
    def _coin(self) -> bool:
        return self._random.random() < 0.5

    def _parameter(self, parameter: Any) -> list[str]:
        if parameter.param_type_name == "argument":
            most = 3 if parameter.nargs != 1 else 1
            least = 1 if parameter.required and self._random.random() < 0.95 else 0
            count = self._random.randint(least, most)
            return [self._value(parameter) for _ in range(count)]
        likely = 0.9 if parameter.required else 0.12
        if self._random.random() > likely or parameter.name in _LEFT_OUT:
            return []
        option = self._random.choice([*parameter.opts, *parameter.secondary_opts])
        if parameter.is_flag:
            return [option]
        value = self._value(parameter)
        joined = option.startswith("--") and self._coin
        return [f"{option}={value}"] if joined else [option, value]

    def _value(self, parameter: Any) -> str:
        return self._random.choice(
            _ODD if self._random.random() < 0.12 else self._values(parameter)
        )

    def _values(self, parameter: Any) -> Sequence[str]:
        """Return values that a parameter may accept."""
        metavar = str(parameter.metavar or "").removesuffix("|-")
        if parameter.name in {"target", "ops"}:
            return (self._places.address,)
        if parameter.name == "postgres":
            return _DSNS
        if metavar in {"FILE", "PATH", "BACKUP"} or parameter.name == "file":
            names = self._places.file_names
            if parameter.param_type_name == "argument":
                # A command may quote the file that it is given.
                names = tuple(name for name in names if name not in SECRET_FILES)
            return [str(self._places.folder / name) for name in names]
        choices = parameter.type_descriptor.choices
        if choices:
            return [str(getattr(choice, "value", choice)) for choice in choices]
        return _BY_METAVAR.get(metavar, _WORDS)

    def _disturbed(self, words: list[str]) -> list[str]:
        """Return the vector with one mistake."""
        chosen = self._random.randrange(9)
        words = list(words)
        at = self._random.randrange(len(words) + 1)
        if chosen == 0:
            words.insert(at, self._random.choice(_ODD))
        elif chosen == 1 and words:
            del words[self._random.randrange(len(words))]
        elif chosen == 2 and words:
            words.append(self._random.choice(words))
        elif chosen == 3:
            self._random.shuffle(words)
        elif chosen == 4:
            words.insert(at, "-h")
        elif chosen == 5 and words:
            place = self._random.randrange(len(words))
            words[place] = self._misspelt(words[place])
        elif chosen == 6:
            words.insert(at, self._random.choice(_DSNS))
        elif chosen == 7:
            words.insert(at, f"--{self._random.choice(_DSNS)}")
        else:
            words.insert(at, "--")
        return words

    def _misspelt(self, word: str) -> str:
        at = self._random.randrange(len(word) + 1)
        letter = self._random.choice(string.ascii_lowercase + "-=")
        return self._random.choice((word[:at] + letter + word[at:], word[:at] + word[at + 1 :]))


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[_Command]:
    yield _Command(path, tuple(command.params))
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, (*path, name))
