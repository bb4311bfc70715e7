"""What the fields of a record may hold: a file of records comes from others, and every value of it is checked here.

The check of a field is that of its type in `Record`, some have a stricter one. Names and messages are kept as they are
but for their control characters, which become visible escapes.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hectogpt.display import printable

LARGEST = 1e12  # of any number but a whole one; no loss, time (s) or memory (MiB) comes near it
LONGEST_NAME = 1000  # characters of a name of a corpus, track, recipe or arm
OVERRIDE = re.compile(r"\w+(\.\w+)*\Z")
KINDS = {str: "a text", bool: "true or false", int: "a whole number", dict: "an object", list: "a list"}

Check = Callable[[Any], Any]  # the value, cleaned, or ValueError with what it should be


def check_type(kind: Any, value: Any) -> Any:
    """The value as this type, cleaned. Raises ValueError with what it should be."""
    of, inner = get_origin(kind) or kind, get_args(kind)
    if of in (Union, types.UnionType):  # X | None
        return None if value is None else check_type(inner[0], value)
    if of is Literal and value not in inner:
        raise ValueError(f"it should be one of {', '.join(inner)}")
    if of is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("it should be a number")
    if of in KINDS and (not isinstance(value, of) or (of is int and isinstance(value, bool))):
        raise ValueError(f"it should be {KINDS[of]}")
    if of is float and not 0 <= value <= LARGEST:  # nan neither
        raise ValueError(f"it should be a number from 0 to {LARGEST:g}")
    if of is int and not -(2**63) <= value < 2**64:
        raise ValueError("it should be a whole number of at most 64 bits")
    if of is dict and inner[1] is str and not all(isinstance(text, str) for text in value.values()):
        raise ValueError("its values should be texts")
    if of is list:
        return [_item(inner[0], place, item) for place, item in enumerate(value, start=1)]
    return printable(value) if of is str else float(value) if of is float else value


def _item(kind: Any, place: int, item: Any) -> Any:
    try:
        return check_type(kind, item)
    except ValueError as error:
        raise ValueError(f"item {place} is {shown(item)}; {error}") from None


def _name(text: str) -> str:
    text = text.replace("\n", "\\n").replace("\t", "\\t")
    if len(text) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} characters")
    return text


def _count(number: int | None) -> int | None:
    if number is not None and number < 0:
        raise ValueError("it should not be negative")
    return number


def _overrides(fields: dict[str, Any]) -> dict[str, Any]:
    odd = [name for name in fields if not OVERRIDE.match(name)]
    if odd:
        raise ValueError(f"{odd[0][:60]!r} is no name of a field")
    return fields


def _run(fields: dict[str, Any]) -> dict[str, Any]:
    """Of the run the records' readers need its steps; the rest may be of a version that knows other fields."""
    if "steps" not in fields:
        raise ValueError("it has no steps")
    try:
        _count(check_type(int, fields["steps"]))
    except ValueError as error:
        raise ValueError(f"its steps: {error}") from None
    return fields


# What a field must be beside its type.
STRICTER: dict[str, Check] = {
    **dict.fromkeys(("corpus", "track", "recipe", "arm"), _name),
    **dict.fromkeys(("steps", "train_tokens", "params"), _count),
    "overrides": _overrides,
    "run": _run,
}


def check_fields(row: Mapping[str, Any], record: type) -> Iterator[tuple[str, Any]]:
    """(name, value) of the fields that a record has, each checked. Fields of other versions are left out.

    record: the dataclass. Raises ValueError, naming the field, for a value that it cannot have.
    """
    kinds = _types_of(record)
    for name in filter(kinds.__contains__, row):
        try:
            value = check_type(kinds[name], row[name])
            yield name, STRICTER[name](value) if name in STRICTER else value
        except ValueError as error:
            raise ValueError(f"field {name!r} is {shown(row[name])}; {error}") from None


@cache
def _types_of(record: type) -> dict[str, Any]:
    hints = get_type_hints(record)
    return {field.name: hints[field.name] for field in dataclasses.fields(record)}


def shown(value: Any) -> str:
    """A value in an error: the beginning of a long one."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
