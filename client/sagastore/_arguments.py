"""Validation of the arguments of public methods, derived from their annotations."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from sagastore import _checks as checks
from sagastore._checks import Check, optional
from sagastore._consistency import Consistency, position_text
from sagastore._enums import Durability, OnConflict, Order, Phase, Reads, _Wire
from sagastore._file_model import File
from sagastore._model import Message
from sagastore._retry import RetryPolicy
from sagastore._tls import TLS

__all__ = ["checked"]

F = TypeVar("F", bound=Callable[..., Any])


def _member(kind: type[_Wire]) -> Check:
    """Return a check for a member of an enumeration, which may be given by its name."""

    def check(value: Any, name: str) -> _Wire:
        try:
            return kind.of(value)
        except ValueError as exc:
            raise checks.invalid(name, str(exc)) from None

    return check


def _consistency(value: Any, name: str) -> Consistency:
    """Require a consistency, which may be given as text."""
    del name  # The error has it.
    return value if isinstance(value, Consistency) else Consistency(value)


_CHECKS: Final[Mapping[str, Check]] = {
    "str": checks.text,
    "str | None": optional(checks.text),
    "Iterable[str]": checks.texts,
    "int": checks.integer,
    "int | None": optional(checks.integer),
    "bool": checks.flag,
    "bool | None": optional(checks.flag),
    # Every float of the API is a timeout.
    "float": checks.seconds,
    "float | None": optional(checks.seconds),
    "datetime | None": optional(checks.time),
    "Mapping[str, Any] | None": optional(checks.mapping),
    "Message": checks.instance(Message),
    "Iterable[Message]": checks.messages,
    "Iterable[Message] | AsyncIterable[Message]": checks.messages,
    "File": checks.instance(File),
    "Durability | str": _member(Durability),
    "OnConflict | str": _member(OnConflict),
    "Order | str": _member(Order),
    "Phase | str": _member(Phase),
    "Reads | str": _member(Reads),
    "Consistency | str | None": optional(_consistency),
    "Callable[[BulkProgress], object] | None": optional(checks.callback),
    "str | Sequence[str]": checks.text_or_texts,
    "TLS | bool": checks.instance(TLS, bool),
    "Token | None": checks.token,
    "RetryPolicy | None": optional(checks.instance(RetryPolicy)),
}
"""The check of each annotation, by its text."""

_BY_NAME: Final[Mapping[str, Check]] = {
    "if_revision": optional(checks.int64),
    "count": checks.count,
    "position": position_text,
}
"""Checks of parameters whose annotation does not tell enough."""


def checked(method: F) -> F:
    """Check the arguments of a method, as its annotations describe them, before it runs.

    Default values are not checked. The checks take less than 1 µs.

    Raises:
        InvalidArgumentError: From the decorated method, with the name of the argument.
        TypeError: From the decorator: no check is known for an annotation.
    """
    check = _Arguments(method)

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def coroutine(self: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs:
                check.named(kwargs)
            return await method(self, *(check.positional(args) if args else ()), **kwargs)

        return cast("F", coroutine)

    @functools.wraps(method)
    def function(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            check.named(kwargs)
        return method(self, *(check.positional(args) if args else ()), **kwargs)

    return cast("F", function)


class _Arguments:
    """The checks of the parameters of a method."""

    __slots__ = ("_by_name", "_in_order")

    def __init__(self, method: Callable[..., Any]) -> None:
        self._by_name: dict[str, Check] = {}
        for name, annotation in method.__annotations__.items():
            if name == "return":
                continue
            check = _BY_NAME.get(name) or _CHECKS.get(annotation)
            if check is None:
                raise TypeError(f"{method.__qualname__}: no check for {name}: {annotation}")
            self._by_name[name] = check
        self._in_order = tuple(self._by_name.items())

    def named(self, values: dict[str, Any]) -> None:
        """Check keyword arguments, and replace those that have another form."""
        for name, value in values.items():
            check = self._by_name.get(name)
            if check is not None:  # Otherwise Python's own error follows.
                values[name] = check(value, name)

    def positional(self, values: tuple[Any, ...]) -> Sequence[Any]:
        """Return positional arguments in the form that the method takes."""
        if len(values) > len(self._in_order):
            return values  # Python's own error follows.
        pairs = zip(self._in_order, values, strict=False)
        return [check(value, name) for (name, check), value in pairs]
