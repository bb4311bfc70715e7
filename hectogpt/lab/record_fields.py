"""What the fields of a record may hold: a file of records comes from others, and every value of it is checked here.

Names and messages are kept as they are but for their control characters, which become visible escapes.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hectogpt.display import printable

LARGEST = 1e12  # of any number but a whole one; no loss, time (s) or memory (MiB) comes near it
LONGEST_NAME = 1000  # characters of a name of a corpus, track, recipe or arm
OVERRIDE = re.compile(r"\w+(\.\w+)*\Z")
WANTED = {
    str: "a text",
    bool: "true or false",
    int: "a whole number of at most 64 bits",
    float: f"a number from 0 to {LARGEST:g}",
    dict: "an object",
    list: "a list",
}


def clean(kind: Any, value: Any) -> Any:
    """The value as this type, texts with escapes. Raises ValueError with what it should be."""
    of, inner = get_origin(kind) or kind, get_args(kind)
    if of in (Union, types.UnionType):  # X | None
        return None if value is None else clean(inner[0], value)
    if of is Literal:
        if value not in inner:
            raise ValueError(f"it should be one of {', '.join(inner)}")
        return value
    if of is float:  # nan is not within the bounds
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST
    elif of is int:
        fits = type(value) is int and -(2**63) <= value < 2**64
    else:
        fits = isinstance(value, of)
    if not fits:
        raise ValueError(f"it should be {WANTED[of]}")
    if of is list:
        return [clean(inner[0], item) for item in value]
    if of is dict and inner[1] is str:
        return {name: clean(str, text) for name, text in value.items()}
    return printable(value) if of is str else float(value) if of is float else value


def _more(name: str, value: Any) -> Any:
    """The same for what a field must be beside its type."""
    if name in ("corpus", "track", "recipe", "arm"):
        value = value.replace("\n", "\\n").replace("\t", "\\t")
        if len(value) > LONGEST_NAME:
            raise ValueError(f"a name has at most {LONGEST_NAME} characters")
    elif name in ("steps", "train_tokens", "params") and value is not None and value < 0:
        raise ValueError("it should not be negative")
    elif name == "overrides" and (odd := [field for field in value if not OVERRIDE.match(field)]):
        raise ValueError(f"{odd[0][:60]!r} is no name of a field")
    elif name == "run":  # the rest may be of a version that knows other fields
        _more("steps", clean(int, value.get("steps")))
    return value


def check_fields(row: Mapping[str, Any], record: type) -> Iterator[tuple[str, Any]]:
    """(name, value) of the fields that a record has, each checked. Fields of other versions are left out.

    record: the dataclass. Raises ValueError, naming the field, for a value that it cannot have.
    """
    kinds = _types_of(record)
    for name in filter(kinds.__contains__, row):
        try:
            yield name, _more(name, clean(kinds[name], row[name]))
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
