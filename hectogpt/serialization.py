"""Write frozen dataclasses as plain JSON values, read them back, and list differences.

A field that may hold one of several classes (an optimizer, a norm) is written with its class's
name under "type". Such classes derive from `Value`, which keeps a table of them by name, and
a file can name only these classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import types
import typing
from abc import ABC
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from hectogpt.errors import UserError, unknown

IDEA_MODULE = "hectogpt_idea_"  # prefix of the module names of users' own files

T = typing.TypeVar("T")
MOST_ITEMS = 1000  # of a list in a file; our own lists have a handful

# Module name -> class name -> class, for users' own files. All other classes are under "".
_CLASSES: dict[str, dict[str, type[Value]]] = {"": {}}
# The modules whose classes `load` finds; None allows all.
_ideas: ContextVar[list[str] | None] = ContextVar("ideas", default=None)
_type_hints = functools.cache(
    typing.get_type_hints
)  # cached, because it takes most of the time of reading a record


@dataclasses.dataclass(frozen=True)
class Value(ABC):  # noqa: B024  its subclasses declare the abstract methods
    """Base class of every exchangeable part of a run: a norm, an optimizer, a schedule.

    Defining a class raises UserError if its name is taken. The same class defined again, as in a
    notebook's cell, replaces the old one. Classes of users (in files, scripts, notebooks) may also
    replace each other.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = _CLASSES.setdefault(
            cls.__module__ if cls.__module__.startswith(IDEA_MODULE) else "", {}
        )
        name = cls.__name__
        other = _CLASSES[""].get(name)
        if other is not None and not _may_replace(other, cls):
            raise UserError(
                f"class {name} has the name of a class of {other.__module__}",
                why="run files name classes, so the names must differ",
                fix=f"rename it, for example to My{name}",
            )
        own[name] = cls


def _may_replace(old: type, new: type) -> bool:
    same = (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)
    return same or (_is_users(old) and _is_users(new))


def _is_users(kind: type) -> bool:
    return kind.__module__ == "__main__" or kind.__module__.startswith(
        (IDEA_MODULE, "transformers_modules.")
    )


@contextlib.contextmanager
def classes_of(ideas: Iterable[str]) -> Iterator[None]:
    """Context manager: let `load` find, of the classes in users' files, only those of `ideas`.

    `ideas` are the SHA-256 hashes of the files' sources. A file that was not imported has no
    classes.
    """
    token = _ideas.set([idea_module(sha256) for sha256 in ideas])
    try:
        yield
    finally:
        _ideas.reset(token)


def idea_module(sha256: str) -> str:
    """The module name of a user's own file."""
    return IDEA_MODULE + sha256[:16]


def dump(value: Any) -> Any:
    """Convert a value to dicts, lists, numbers, strings, booleans and None.

    nan and infinity, which JSON lacks, become strings.
    """
    if isinstance(value, type):
        raise TypeError(f"a class is not a value: {value}")
    if dataclasses.is_dataclass(value):
        fields = {f.name: dump(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__} | fields if isinstance(value, Value) else fields
    if isinstance(value, (tuple, list)):
        return [dump(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot write a {type(value).__name__} into a run file")


def load(kind: Any, data: Any, where: str = "") -> Any:
    """Rebuild a value of type `kind` from `dump`'s output.

    Raises UserError, naming a field that does not fit.
    """
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # X | None
        return (
            None
            if data is None
            else load(next(a for a in arguments if a is not types.NoneType), data, where)
        )
    if origin is typing.Literal and data in arguments:
        return data
    if origin is tuple and isinstance(data, list):
        return _load_tuple(kind, arguments, data, where)
    if origin is list and isinstance(data, list):
        return [load(arguments[0], item, f"{where}.{i}") for i, item in enumerate(data)]
    if origin is dict and isinstance(data, dict):
        return (
            data
            if arguments[1] is Any
            else {key: load(arguments[1], item, where) for key, item in data.items()}
        )
    if dataclasses.is_dataclass(kind) and isinstance(data, dict):
        return _load_dataclass(typing.cast(type, kind), dict(data), where)
    if kind is float and isinstance(data, str) and data in ("inf", "-inf", "nan"):
        return float(data)
    if kind is float and type(data) is int and abs(data) < 10**300:
        # Much larger integers do not fit into a float.
        return float(data)
    if origin is None and type(data) is kind:
        return data
    raise _misfit(where, kind, data)


def _load_tuple(
    kind: Any, arguments: tuple[Any, ...], data: list[Any], where: str
) -> tuple[Any, ...]:
    if len(data) > MOST_ITEMS:
        raise UserError(
            f"{where or 'value'} has {len(data):,} items", why=f"at most {MOST_ITEMS:,} are read"
        )
    kinds = arguments[:1] * len(data) if arguments[1:] == (...,) else arguments
    if len(kinds) != len(data):
        raise _misfit(where, kind, data)
    return tuple(
        load(a, item, f"{where}.{i}") for i, (a, item) in enumerate(zip(kinds, data, strict=True))
    )


def _load_dataclass(kind: type, data: dict[str, Any], where: str) -> Any:
    name = data.pop("type", None)
    if issubclass(kind, Value) and (name is not None or inspect.isabstract(kind)):
        kind = _class_named(str(name), kind, where)
    here = where or kind.__name__
    names = [f.name for f in dataclasses.fields(kind)]
    if other := [key for key in data if key not in names]:
        raise unknown(f"{here}: unknown field {_shown(other[0])}", other[0], names)
    needed = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is f.default_factory is dataclasses.MISSING
    ]
    if absent := [name for name in needed if name not in data]:
        raise UserError(f"{here}: no {', '.join(absent)}", why=f"{kind.__name__} needs it")
    hints = _type_hints(kind)
    prefix = f"{where}." if where else ""
    return kind(**{key: load(hints[key], item, prefix + key) for key, item in data.items()})


def _class_named(name: str, base: type, where: str) -> type:
    """Find `base` or a concrete subclass of it by name. Raises UserError if there is none."""
    ideas = _ideas.get()
    tables = [_CLASSES.get(module, {}) for module in ("", *(_CLASSES if ideas is None else ideas))]
    known = {
        k: c
        for table in tables
        for k, c in table.items()
        if issubclass(c, base) and not inspect.isabstract(c)
    }
    if name in known:
        return known[name]
    allowed = sorted({c.__name__ for c in known.values()})
    raise unknown(f"{where or base.__name__}: unknown type {_shown(name)}", name, allowed)


def replace(value: T, /, **changes: Any) -> T:
    """A copy of a frozen value, such as a Run, with some fields changed.

    Raises UserError for an unknown field.
    """
    names = [field.name for field in dataclasses.fields(typing.cast(Any, value))]
    if unknown := [name for name in changes if name not in names]:
        name = {"learning_rate": "lr"}.get(unknown[0], unknown[0])
        new = changes[unknown[0]]
        inner = [section for section in names if hasattr(getattr(value, section), name)]
        near = difflib.get_close_matches(unknown[0], names, 1)
        fix = (
            f"replace(run, {inner[0]}=replace(run.{inner[0]}, {name}={new!r}))"
            if inner
            else "name one of these"
        )
        what = f"{type(value).__name__} has no field {unknown[0]!r}"
        why = f"it has {', '.join(names)}"
        raise UserError(
            what, why=why, fix=f"replace(run, {near[0]}={new!r})" if near and not inner else fix
        )
    return dataclasses.replace(typing.cast(Any, value), **changes)


def _misfit(where: str, kind: Any, data: Any) -> UserError:
    expected = getattr(kind, "__name__", str(kind))
    return UserError(
        f"{where or 'value'}: {_shown(data)} does not fit",
        why=f"expected {expected}, got {type(data).__name__}",
    )


def _shown(data: Any) -> str:
    """Show a value from a file in a message, shortened if it is long."""
    text = repr(data)
    return text if len(text) <= 200 else f"{text[:200]}..."


def diff(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """The fields in which two values, or their dumps, differ: {dotted field: (before, after)}."""
    a, b = (value if isinstance(value, dict) else dump(value) for value in (before, after))
    return dict(_diff(a, b, ""))


def _diff(a: Any, b: Any, where: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    same_kind = isinstance(a, dict) and isinstance(b, dict) and a.get("type") == b.get("type")
    if same_kind:
        for key in a | b:
            yield from _diff(a.get(key), b.get(key), f"{where}.{key}" if where else key)
    elif a != b:
        yield where, (a, b)
