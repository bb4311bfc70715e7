"""Frozen dataclasses to plain JSON values and back, and the difference between two of them.

A field that holds one of several classes (an optimizer, a norm) is written with its class name under "type". Reading
looks that name up among the dataclasses derived from `Value`, so a file can name our values and nothing else.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from hectogpt.errors import UserError


@dataclasses.dataclass(frozen=True)
class Value:
    """Base of every part of a run that can be exchanged for another: a norm, an optimizer, a schedule."""


def _all_values(base: type = Value) -> dict[str, type]:
    found: dict[str, type] = {}
    children: list[type] = base.__subclasses__()
    for child in children:
        found[child.__name__] = child
        found |= _all_values(child)
    return found


def dump(value: Any) -> Any:
    """Turn a value into dicts, lists, numbers, strings, booleans and None; floats that JSON lacks become strings."""
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
    """Rebuild a value of type `kind` from `dump`'s output. Raises UserError naming the field that does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return load(arguments[0], data, where)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        members = [a for a in arguments if a is not type(None)]
        if len(members) == 1:
            return load(members[0], data, where)
        for member in members:
            if isinstance(member, type) and type(data) is member:
                return data
        raise _misfit(where, kind, data)
    if origin is typing.Literal:
        if data in arguments:
            return data
        raise _misfit(where, kind, data)
    if origin is tuple:
        if not isinstance(data, list):
            raise _misfit(where, kind, data)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(load(arguments[0], item, f"{where}.{i}") for i, item in enumerate(data))
        if len(arguments) != len(data):
            raise _misfit(where, kind, data)
        return tuple(load(a, item, f"{where}.{i}") for i, (a, item) in enumerate(zip(arguments, data, strict=True)))
    if dataclasses.is_dataclass(kind):
        return _load_dataclass(typing.cast(type, kind), data, where)
    if kind is float and isinstance(data, str) and data in ("inf", "-inf", "nan"):
        return float(data)
    if kind is float and type(data) is int:
        return float(data)
    if isinstance(kind, type) and type(data) is kind:
        return data
    raise _misfit(where, kind, data)


def _load_dataclass(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise _misfit(where, kind, data)
    data = dict(data)
    name = data.pop("type", None)
    if issubclass(kind, Value) and name is not None:
        allowed = {kind.__name__: kind} | _all_values(kind)
        if name not in allowed:
            raise UserError(
                f"{where or kind.__name__}: unknown type {name!r}",
                why=f"it must be one of {', '.join(sorted(allowed))}",
                fix=did_you_mean(str(name), allowed),
            )
        kind = allowed[name]
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [f.name for f in dataclasses.fields(kind)]
    for key in data:
        if key not in names:
            raise UserError(
                f"{where or kind.__name__}: unknown field {key!r}",
                why=f"{kind.__name__} has {', '.join(names)}",
                fix=did_you_mean(key, names),
            )
    absent = [f.name for f in dataclasses.fields(kind) if f.name not in data and _required(f)]
    if absent:
        raise UserError(f"{where or kind.__name__}: no {', '.join(absent)}", why=f"{kind.__name__} needs it")
    prefix = f"{where}." if where else ""
    return kind(**{key: load(hints[key], item, prefix + key) for key, item in data.items()})


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _misfit(where: str, kind: Any, data: Any) -> UserError:
    expected = getattr(kind, "__name__", str(kind))
    return UserError(
        f"{where or 'value'}: {data!r} does not fit", why=f"expected {expected}, got {type(data).__name__}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name, or list them all."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def diff(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """Return {dotted field: (before, after)} for every leaf in which two values differ."""
    return dict(_diff(dump(before), dump(after), ""))


def _diff(a: Any, b: Any, where: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    same_kind = isinstance(a, dict) and isinstance(b, dict) and a.get("type") == b.get("type")
    if same_kind:
        for key in a:
            yield from _diff(a[key], b[key], f"{where}.{key}" if where else key)
    elif a != b:
        yield where, (a, b)
