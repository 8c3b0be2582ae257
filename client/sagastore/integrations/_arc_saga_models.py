"""Model classes of an ARC SAGA application: their fields, and objects built from stored values.

The classes are dataclasses, pydantic models, or classes whose `__init__` names the
fields. None of these libraries is imported: a class is inspected through the attributes
that it has.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
import warnings
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from enum import Enum
from importlib import import_module
from typing import Any, NamedTuple

__all__ = ["Models", "Record"]

_MESSAGE = ("id", "provider", "role", "content", "timestamp")
_MESSAGE_OPTIONAL = ("tags", "metadata", "session_id", "created_at")
_FILE = ("id", "filename", "filepath", "file_type")
_FILE_OPTIONAL = (
    "extracted_text",
    "tags",
    "file_size",
    "uploaded_at",
    "metadata",
    "created_at",
)
_RESULT = (
    *(*_MESSAGE, *_MESSAGE_OPTIONAL, "entity", "entity_id", "entity_type", "message"),
    *("relevance", "relevance_score", "score", "snippet"),
)
_ENUMS = {"provider": "Provider", "role": "MessageRole", "file_type": "FileType"}
_HINT = "pass the application's classes, or the name of the module that has them, as `models`"


class _Field(NamedTuple):
    """A field of a class."""

    keyword: str
    """Keyword of the constructor."""
    annotation: Any
    """Type of the field; None if it is not known."""
    required: bool
    default: Callable[[], Any]
    """Returns the default; None if there is none."""


class Record:
    """A class of the application, built by keyword from stored values."""

    def __init__(self, cls: Any, enums: Mapping[str, type[Enum]]) -> None:
        """Inspect a class.

        Args:
            cls: The class.
            enums: Enum classes by field, for fields whose annotation cannot be resolved.

        Raises:
            TypeError: The class does not tell its fields.
        """
        self.name = f"{cls.__module__}.{cls.__qualname__}"
        self._class = cls
        self._fields = _fields(cls)
        if not self._fields:
            raise TypeError(
                f"{self.name} does not tell its fields; use a dataclass, a pydantic model, "
                "or an __init__ with one named parameter for each field"
            )
        self._enums = {name: _enum(f, enums.get(name)) for name, f in self._fields.items()}

    def __contains__(self, name: str) -> bool:
        """Return whether the class has a field."""
        return name in self._fields

    def require(self, needed: Collection[str], known: Collection[str]) -> None:
        """Require that the class can be built from stored values.

        Args:
            needed: The fields that the class must have.
            known: The fields for which there are values; `needed` is a part of them.

        Raises:
            TypeError: The class lacks a field, or has a field without a default for
                which there is no value.
        """
        for name in needed:
            if name not in self._fields:
                raise TypeError(f"{self.name} has no field {name!r}, which is needed")
        for name, field in self._fields.items():
            if field.required and name not in known:
                raise TypeError(
                    f"{self.name}.{name} has no default, and SagaStore has no value for it; "
                    "give the field a default"
                )

    def require_stored(self, known: Collection[str], unstored: Collection[str]) -> None:
        """Require that SagaStore stores every field of the class.

        Args:
            known: The fields that are stored.
            unstored: Fields that need not be stored.

        Raises:
            TypeError: A field would be lost.
        """
        for name in self._fields:
            if name not in known and name not in unstored:
                raise TypeError(
                    f"{self.name}.{name} is not a field of SagaStore and would not be stored; "
                    "keep the value in `metadata`, or name the field in `unstored`"
                )

    def creates_naive_times(self, name: str) -> bool:
        """Return whether the default of a field is a time without a time zone."""
        field = self._fields.get(name)
        if field is None:
            return False
        with warnings.catch_warnings():
            # datetime.utcnow is deprecated since Python 3.12.
            warnings.simplefilter("ignore", DeprecationWarning)
            value = field.default()
        return isinstance(value, datetime) and value.utcoffset() is None

    def build(self, values: Mapping[str, Any]) -> Any:
        """Return an object with those of the values for which the class has a field.

        Raises:
            ValueError: The class has no place for a value; the error names the class and,
                if it is known, the field.
        """
        arguments = {
            field.keyword: self._converted(name, values[name])
            for name, field in self._fields.items()
            if name in values
        }
        try:
            return self._class(**arguments)
        except (TypeError, ValueError) as exc:
            reason = " ".join(str(exc).split())
            raise ValueError(f"{self.name} refuses the stored values: {reason}") from exc

    def read(self, instance: Any, name: str, default: Any = None) -> Any:
        """Return a value of an object of the application; a member of an enum as its value.

        Args:
            instance: The object.
            name: The field.
            default: Returned if the class has no such field.

        Raises:
            ValueError: The object lacks a field of the class.
        """
        if name not in self._fields:
            return default
        try:
            value = getattr(instance, name)
        except AttributeError:
            kind = type(instance).__name__
            raise ValueError(f"{kind} has no attribute {name!r}; expected a {self.name}") from None
        return value.value if isinstance(value, Enum) else value

    def _converted(self, name: str, value: Any) -> Any:
        enum, open_set = self._enums[name]
        if enum is None or value is None:
            return value
        try:
            return enum(value)
        except ValueError:
            if open_set:
                return value
            members = ", ".join(str(member.value) for member in enum)
            raise ValueError(
                f"{self.name}.{name} cannot be {value!r}: {enum.__name__} has {members}; "
                "add the member, or correct the stored value"
            ) from None


class Models:
    """The classes of an application: `Message`, `File`, `SearchResult` and `StorageError`.

    Attributes:
        message: The class of messages.
        file: The class of files.
        result: The class of search results.
        error: The application's exception.
    """

    def __init__(self, source: Any, unstored: Collection[str]) -> None:
        """Find and inspect the classes.

        Args:
            source: A module, the name of a module, or any object with the classes as
                attributes. If it has no `StorageError`, that of the module `exceptions`
                beside it is used.
            unstored: Fields of messages and files that need not be stored.

        Raises:
            ImportError: There is no such module.
            TypeError: A class is missing or cannot hold the stored values; the error
                names it.
        """
        self._source = _imported(source) if isinstance(source, str) else source
        enums = {
            field: cls
            for field, name in _ENUMS.items()
            if isinstance(cls := getattr(self._source, name, None), type) and issubclass(cls, Enum)
        }
        self.message = Record(self._class("Message"), enums)
        self.message.require(_MESSAGE, (*_MESSAGE, *_MESSAGE_OPTIONAL))
        self.message.require_stored((*_MESSAGE, *_MESSAGE_OPTIONAL), unstored)
        self.file = Record(self._class("File"), enums)
        self.file.require(_FILE, (*_FILE, *_FILE_OPTIONAL))
        self.file.require_stored((*_FILE, *_FILE_OPTIONAL), unstored)
        self.result = Record(self._class("SearchResult"), enums)
        self.result.require((), _RESULT)
        self.error = self._error_class()
        self._operation = _has_parameter(self.error, "operation")

    def failure(self, text: str, operation: str) -> Any:
        """Return the application's exception for a failure.

        Args:
            text: The problem.
            operation: Name of the method, passed on if the exception has a parameter
                `operation`.
        """
        return self.error(text, operation=operation) if self._operation else self.error(text)

    def _class(self, name: str) -> Any:
        found = getattr(self._source, name, None)
        if not isinstance(found, type):
            raise TypeError(f"{_described(self._source)} has no class {name!r}; {_HINT}")
        return found

    def _error_class(self) -> Any:
        found = getattr(self._source, "StorageError", None)
        if found is None and isinstance(self._source, types.ModuleType):
            package = self._source.__name__.rpartition(".")[0]
            name = f"{package}.exceptions" if package else "exceptions"
            found = getattr(_imported(name), "StorageError", None)
        if not (isinstance(found, type) and issubclass(found, Exception)):
            raise TypeError(
                f"{_described(self._source)} has no exception 'StorageError'; "
                "pass an object that has it together with the classes as `models`"
            )
        return found


def _imported(name: str) -> types.ModuleType:
    try:
        return import_module(name)
    except ImportError as exc:
        raise ImportError(
            f"the module {name} of ARC SAGA cannot be imported: {exc}; {_HINT}"
        ) from exc


def _described(source: Any) -> str:
    return getattr(source, "__name__", None) or type(source).__name__


def _has_parameter(function: Any, name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # The class has no signature.
        return False


def _fields(cls: Any) -> dict[str, _Field]:
    """Return the fields of a class that its constructor accepts by keyword."""
    if isinstance(getattr(cls, "model_fields", None), Mapping):
        return _pydantic_fields(cls)
    if dataclasses.is_dataclass(cls):
        hints = _hints(cls)
        return {
            field.name: _dataclass_field(field, hints.get(field.name))
            for field in dataclasses.fields(cls)
            if field.init
        }
    return _parameters(cls)


def _pydantic_fields(cls: Any) -> dict[str, _Field]:
    config = getattr(cls, "model_config", {})
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    fields = {}
    for name, info in cls.model_fields.items():
        alias = info.validation_alias
        fields[name] = _Field(
            alias if isinstance(alias, str) and not by_name else name,
            info.annotation,
            info.is_required(),
            info.default_factory or _constant(info.default),
        )
    return fields


def _dataclass_field(field: dataclasses.Field[Any], annotation: Any) -> _Field:
    missing = dataclasses.MISSING
    factory = None if field.default_factory is missing else field.default_factory
    default = None if field.default is missing else field.default
    required = field.default is missing and factory is None
    return _Field(field.name, annotation, required, factory or _constant(default))


def _parameters(cls: Any) -> dict[str, _Field]:
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):
        return {}
    hints = _hints(cls.__init__)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        one.name: _Field(
            one.name, hints.get(one.name), one.default is one.empty, _constant(one.default)
        )
        for one in parameters
        if one.kind in named
    }


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _hints(thing: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(thing)
    except (NameError, TypeError, AttributeError):
        # An annotation names something that exists for type checkers only.
        return {}


def _enum(field: _Field, fallback: type[Enum] | None) -> tuple[type[Enum] | None, bool]:
    """Return the enum of a field, and whether the field also accepts other strings."""
    if field.annotation is None:
        return fallback, False
    choices = _choices(field.annotation)
    enums = [one for one in choices if isinstance(one, type) and issubclass(one, Enum)]
    return (enums[0] if enums else None), str in choices


def _choices(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows: the members of a union, or itself."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _choices(typing.get_args(annotation)[0])
    if origin in {typing.Union, types.UnionType}:
        return [one for part in typing.get_args(annotation) for one in _choices(part)]
    return [annotation]
