"""Values that often break services, from a seeded generator."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from sagastore_server.rpc.page_tokens import encode, request_key

WORDS = ("saga", "store", "the", "naïve", "ship", "OR", "fox", "rust", "v1.85", "foo_bar", "Ωmega")
PIECES = (
    "\x00", "é", "e\u0301", "e" + "\u0301" * 40, "\u202e\u05d0\u05d1", "😀", "👩\u200d👩\u200d👧",
    "\ufeff", "\ufffe", "\U0010ffff", "'", '"', "--", "; DROP TABLE messages", "NEAR(", ")", "*",
    "^", ":", ":*", " & ", " | ", "!(", "<->", "%s", "$1", "{}", "\\", "\n", "\r\n", "\t", "\x7f",
    "ﬃ", "İ", "ß", "ſ", "\u2028", "\x1b[31m", "0" * 40, " ", "\u00a0", "\u3000", "-",
    "/../", "NULL",
)  # fmt: skip
NOT_TEXT = (
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xff\xfe",
    b"\xc0\x80",
    b"\xf5\x80\x80\x80",
    b"\x80",
)
"""Bytes that are not UTF-8; the first two are lone surrogates."""
INTEGERS = (0, 1, -1, 2, 50, 500, 501, 1000, 1001, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63))
SECONDS = (
    0, -1, 1_700_000_000, -62_135_596_800, -62_135_596_801, 253_402_300_799, 253_402_300_800,
    2**63 - 1, -(2**63), 2**53,
)  # fmt: skip
NANOS = (0, 1000, 999_999_000, 1, 999_999_999, 1_000_000_000, -1, 2**31 - 1, -(2**31))
NUMBERS = (
    "0", "-0", "1e400", "-1e400", "1e-400", "1E+2", "1.50", "1e131071", "1e131072", "1e-16383",
    "1e-16384", "1e999999999999", "9" * 5000, "0." + "3" * 17_000, "12345678901234567890", "01",
    "1.", "+1", "NaN", "Infinity", "-Infinity", "0x10",
)  # fmt: skip
LIMITS = (32, 64, 128, 256, 8192, 100_000, 1_000_000)
POOL = 200
"""Ids that most calls share, so that calls affect each other."""


class Values:
    """Generates values; equal generators give equal values."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng

    def chance(self, share: float) -> bool:
        """Return True with probability ``share``."""
        return self.rng.random() < share

    def word(self) -> str:
        """Return a word that messages contain."""
        return self.rng.choice(WORDS)

    def sentence(self) -> str:
        """Return a natural-language text."""
        return " ".join(self.rng.choices(WORDS, k=self.rng.randint(1, 12)))

    def pieces(self, most: int = 12) -> str:
        """Return a text of unusual pieces."""
        return "".join(self.rng.choices(PIECES + WORDS, k=self.rng.randint(1, most)))

    def id(self) -> str:
        """Return one of the shared ids."""
        return f"fuzz-{self.rng.randrange(POOL)}"

    def hostile_text(self) -> bytes:
        """Return text, or bytes instead of text, that a field may have to reject."""
        kind = self.rng.randrange(20)
        if kind < 9:
            return self.pieces().encode()
        if kind < 12:
            return self._at_a_limit()
        if kind < 14:
            return b""
        if kind < 17:
            return self.sentence().encode() + self.rng.choice((*NOT_TEXT, b"\x00")) + b"x"
        return self.rng.choice((self.token(b"").encode(), self.rng.randbytes(kind * 8)))

    def _at_a_limit(self) -> bytes:
        length = self.rng.choice(LIMITS if self.chance(0.1) else LIMITS[:4])
        unit = self.rng.choice(("a", "é", "😀", "a "))
        return (unit * length)[: length + self.rng.choice((-1, 0, 1))].encode()

    def query(self) -> str:
        """Return a search query that mixes the syntax of several languages."""
        kind = self.rng.randrange(40)
        if kind < 12:
            return self.sentence()
        if kind < 36:
            return " ".join(
                self.rng.choice((self.word, self._term, self.pieces))()
                for _ in range(self.rng.randint(1, 8))
            )
        count = self.rng.choice((300, 2000, 6000) if self.chance(0.2) else (50, 120))
        many: Callable[[int], str] = self.rng.choice((
            lambda n: f"w{n}", lambda n: f"w{n}*", lambda n: f"-w{n}", lambda n: f"w{n} OR",
            lambda n: f'"w{n} x"', lambda n: "OR", lambda n: "a*", lambda n: '"',
            lambda n: "NOT", lambda n: "-(", lambda n: f"(w{n} OR", lambda n: f"w{n})",
            lambda n: f"(w{n} OR NOT x{n}) AND", lambda n: f'("w{n} x" AND',
        ))  # fmt: skip
        return " ".join(map(many, range(count)))

    def _term(self) -> str:
        word = self.word()
        shapes = (
            f'"{word} {word}"', f"-{word}", f"{word}*", f"{word} OR {word}", f"content:{word}",
            f"({word})", f"NEAR({word} {word}, 5)", f"{word}:*", f"!{word} & {word}", f"'{word}",
            f"{word} AND {word}", f"NOT {word}", "NOT", f"({word} OR", f"{word})", f"-({word}",
            f"^{word}", f'"{word}', f"--{word}", f'-"{word} {word}"', f"{word[:1]}*", "*", "-",
        )  # fmt: skip
        return self.rng.choice(shapes)

    def metadata(self) -> str:
        """Return a valid JSON object."""
        return json.dumps({self.word(): self._json(0) for _ in range(self.rng.randrange(4))})

    def _json(self, depth: int) -> object:
        kind = self.rng.randrange(9 if depth < 4 else 6)
        plain = (None, True, self.rng.randrange(10**6), self.rng.random(), self.word(), 'é\t"\\')
        if kind < 6:
            return plain[kind]
        if kind == 6:
            return [self._json(depth + 1) for _ in range(self.rng.randrange(4))]
        return {self.pieces(2).replace("\x00", ""): self._json(depth + 1) for _ in range(3)}

    def hostile_json(self) -> bytes:
        """Return JSON that both stores may have to reject, or invalid JSON."""
        number = self.rng.choice(NUMBERS)
        depth = self.rng.choice((5, 199, 200, 201, 5000, 60_000))
        shapes: tuple[Callable[[], str], ...] = (
            lambda: f'{{"n": {number}}}',
            lambda: f'{{"n": [{number}, {{"x": {number}}}]}}',
            lambda: '{"a": 1, "a": 2}',
            lambda: '{"a": {"é": 1, "\\u00e9": 2}}',
            lambda: '{"a":' * depth + "1" + "}" * depth,
            lambda: '{"a":' + "[" * depth + "]" * depth + "}",
            lambda: '{"a":' + "[" * depth,
            lambda: '{"a": "\\ud800"}',
            lambda: '{"\\udfff": 1}',
            lambda: '{"a": "\\u0000"}',
            lambda: self.rng.choice(
                ("[]", "1", "null", '"x"', "{", "}", "{}{}", "\ufeff{}", " {} ")
            ),
            lambda: json.dumps({f"k{n}": n for n in range(self.rng.choice((10, 3000)))}),
            lambda: '{"a": "' + "x" * self.rng.choice((262_133, 262_134, 262_145)) + '"}',
            lambda: self.metadata()[:-1] + self.pieces(3),
            lambda: json.dumps({self.pieces(2): self.pieces(4)}, ensure_ascii=False),
        )
        made = self.rng.choice(shapes[:10] if self.chance(0.6) else shapes)().encode()
        return made + self.rng.choice(NOT_TEXT) if self.chance(0.05) else made

    def token(self, key: bytes) -> str:
        """Return a page token: forged for the request of ``key``, or broken.

        Tokens contain no secret, so a forged token passes every check except that of its position.
        """
        kind = self.rng.randrange(8)
        if kind == 0:
            return self.pieces()
        if kind == 1:
            return "A" * self.rng.choice((1, 23, 24, 8192, 8193))
        foreign = request_key("List", self.word(), self.chance(0.5))
        token = encode(foreign if kind == 2 else key, self._place())
        if kind == 3:
            at = self.rng.randrange(len(token))
            return token[:at] + self.rng.choice("ABab01-_=é\n") + token[at + 1 :]
        if kind == 4:
            return token[: self.rng.randrange(len(token))]
        return token

    def _place(self) -> list[int | float | str | None]:
        texts = ("", self.id(), "\x01", "\x00", "é" * 128, "z" * 5000, "\U0010ffff", "'; --")
        scalars: tuple[int | float | str | None, ...] = (
            None, 0, -1, 2**63 - 1, -(2**63), 0.5, -1e308, 1_700_000_000_000_000, *texts,
        )  # fmt: skip
        shapes: tuple[Callable[[], list[int | float | str | None]], ...] = (
            lambda: [self.rng.choice(INTEGERS), self.rng.choice(texts)],
            lambda: [self.rng.choice(texts), self.rng.choice(texts)],
            lambda: [self.rng.choice(INTEGERS)],
            lambda: [self.rng.choice(scalars) for _ in range(self.rng.choice((0, 1, 2, 7, 50)))],
            self._ranked_place,
        )
        return self.rng.choice(shapes)()

    def _ranked_place(self) -> list[int | float | str | None]:
        time, text = self.rng.choice(INTEGERS), self.id()
        end: list[int | float | str | None] = [None, None] if self.chance(0.5) else [time, text]
        return [time, text, *end, self.rng.random(), time, text]
