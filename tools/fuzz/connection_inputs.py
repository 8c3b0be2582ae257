"""Connection strings for the fuzzer, each with a password whose parts must not be shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import NamedTuple
from urllib.parse import quote

from sagastore_server.config.libpq import OWN_SETTINGS, PARAMETERS, USUAL_SETTINGS

_SPECIAL = "@/#:%?&='\" \\,;[]+!$(){}|<>^~`*.-_\u00e9\u0416\U0001f600"
_VALUES = (
    "", "0", "1", "5", "-1", "x", "prefer", "require", "requir", "disable", "verify-full", "any",
    "standby", "read-write", "utf8", "latin1", "system", "/nonexistent", "true", "TLSv1.3",
    "direct", "-csearch_path=nowhere", "-c statement_timeout=1", "-S 5", "99999999999999999999",
    "\u0661", "\x00", "\n", "a" * 5000,
)  # fmt: skip
_DATABASES = ("nowhere", "postgres", "", "a b", "\u00e9", "x'y", 'x"y', "%25")


class ConnectionInput(NamedTuple):
    """One input."""

    kind: str
    text: str
    """The connection string."""
    secret: str
    """The password in it, or in a variable."""
    place: str
    """Where it is set: ``environment``, ``file`` or ``option``."""
    variables: dict[str, str]
    """Further environment variables."""

    @property
    def hidden(self) -> list[str]:
        """The parts of the password that must not be shown: runs of letters and digits."""
        return [part for part in re.findall("[A-Za-z0-9]+", self.secret) if len(part) >= 6]


class Places(NamedTuple):
    """Addresses that inputs may name: all of them answer, or refuse, at once."""

    hosts: tuple[str, ...]
    """``host:port`` of servers that refuse the password, offer no TLS, or are none."""


def made(seed: str, number: int, places: Places) -> ConnectionInput:
    """Return input ``number`` of a seed."""
    random = Random(f"{seed}-{number}")
    maker = _Maker(random, places)
    kind = random.choice(tuple(_KINDS))
    text = _KINDS[kind](maker)
    place = random.choice(("environment", "environment", "file", "option"))
    return ConnectionInput(kind, text, maker.secret, place, maker.variables)


class _Maker:
    def __init__(self, random: Random, places: Places) -> None:
        self.random = random
        self._host, _, self._port = random.choice(places.hosts).rpartition(":")
        self.secret = self._made_secret()
        self.variables: dict[str, str] = {}
        if random.random() < 0.2:
            self._add_variables()

    def _made_secret(self) -> str:
        letters = "abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
        runs = [
            "".join(self.random.choices(letters, k=8)) for _ in range(self.random.randint(1, 3))
        ]
        specials = self.random.choices(_SPECIAL, k=len(runs) + 1)
        text = "".join(a + b for a, b in zip(runs, specials, strict=False))
        return self.random.choice(("", specials[-1])) + text

    def _add_variables(self) -> None:
        for _ in range(self.random.randint(1, 3)):
            parameter = self.random.choice(list(PARAMETERS.values()))
            value = self.secret if parameter.is_secret else self.random.choice(_VALUES)
            if parameter.variable and "\x00" not in value:
                self.variables[parameter.variable] = value

    # ------------------------------------------------------------------ strings

    def uri(self) -> str:
        """Return a well-formed URI."""
        return self._uri(quote(self.secret, safe=""))

    def raw_uri(self) -> str:
        """Return a URI whose password is not percent-encoded."""
        return self._uri(self.secret)

    def _uri(self, password: str) -> str:
        scheme = self.random.choice(("postgresql", "postgres"))
        database = quote(self.random.choice(_DATABASES), safe="")
        text = f"{scheme}://me:{password}@{quote(self._host, safe='')}:{self._port}/{database}"
        parameters = self._parameters(lambda value: quote(value, safe=""))
        return text + ("?" + "&".join(parameters) if parameters else "")

    def query_uri(self) -> str:
        """Return a URI with the password as a parameter."""
        name = self.random.choice(("password", "sslpassword", "scram_client_key", "pasword"))
        pairs = [*self._parameters(quote), f"{name}={quote(self.secret, safe='')}"]
        self.random.shuffle(pairs)
        return (
            f"postgresql://me@{quote(self._host, safe='')}:{self._port}/nowhere?{'&'.join(pairs)}"
        )

    def keywords(self) -> str:
        """Return a well-formed keyword string."""
        return self._keywords(_quoted(self.secret))

    def raw_keywords(self) -> str:
        """Return a keyword string whose password is not quoted."""
        return self._keywords(self.secret)

    def _keywords(self, password: str) -> str:
        name = self.random.choice(("password", "password", "Password", "pasword"))
        pairs = [
            f"host={_quoted(self._host)}", f"port={self._port}", "user=me", f"{name}={password}",
            f"dbname={_quoted(self.random.choice(_DATABASES))}", *self._parameters(_quoted),
        ]  # fmt: skip
        self.random.shuffle(pairs)
        return self.random.choice((" ", "  ", "\t")).join(pairs)

    def disturbed(self) -> str:
        """Return a string with additional characters at random places."""
        text = self.random.choice((self.uri, self.raw_uri, self.keywords, self.raw_keywords))()
        for _ in range(self.random.randint(1, 4)):
            place = self.random.randint(0, len(text))
            text = text[:place] + self.random.choice(_SPECIAL) + text[place:]
        return text

    def garbage(self) -> str:
        """Return random text with the password in it."""
        alphabet = _SPECIAL + "postgresql://=host\x01\n"
        before, after = ("".join(self.random.choices(alphabet, k=20)) for _ in range(2))
        return before + ":" + self.secret + after

    def _parameters(self, written: Callable[[str], str]) -> list[str]:
        return [
            f"{self._name()}={written(self.random.choice(_VALUES))}"
            for _ in range(self.random.choice((0, 0, 1, 1, 2, 4)))
        ]

    def _name(self) -> str:
        """Return a parameter that contains no address and no user: these may be shown."""
        shown = {"host", "port", "user", "dbname", "service", "passfile"}
        known = sorted({*PARAMETERS, *USUAL_SETTINGS, *OWN_SETTINGS} - shown)
        name = self.random.choice(known)
        if self.random.random() < 0.25:
            place = self.random.randrange(len(name))
            name = name[:place] + name[place + 1 :]
        return name


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


_KINDS: dict[str, Callable[[_Maker], str]] = {
    "uri": _Maker.uri,
    "raw uri": _Maker.raw_uri,
    "query uri": _Maker.query_uri,
    "keywords": _Maker.keywords,
    "raw keywords": _Maker.raw_keywords,
    "disturbed": _Maker.disturbed,
    "garbage": _Maker.garbage,
}
