"""What the fields of a record may hold: a file of records comes from others, and every value of it is checked here.

Names and messages are kept as they are but for their control characters, which become visible escapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from hectogpt.display import printable

LARGEST = 1e12  # of any number but a whole one; no loss, time (s) or memory (MiB) comes near it
LONGEST_NAME = 1000  # characters of a name of a corpus, track, recipe or arm
OVERRIDE = re.compile(r"\w+(\.\w+)*\Z")
STATUS = ("ok", "diverged", "failed")

Check = Callable[[Any], Any]  # the value, cleaned, or ValueError with what it should be


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("it should be a text")
    return printable(value)


def _name(value: Any) -> str:
    text = _text(value).replace("\n", "\\n").replace("\t", "\\t")
    if len(text) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} characters")
    return text


def _status(value: Any) -> str:
    if value not in STATUS:
        raise ValueError(f"it should be one of {', '.join(STATUS)}")
    return str(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it should be true or false")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("it should be a whole number")
    if not -(2**63) <= value < 2**64:
        raise ValueError("it should be a whole number of at most 64 bits")
    return value


def _count(value: Any) -> int:
    if _whole(value) < 0:
        raise ValueError("it should not be negative")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("it should be a number")
    if not 0 <= value <= LARGEST:  # nan neither
        raise ValueError(f"it should be a number from 0 to {LARGEST:g}")
    return float(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it should be an object")
    return value


def _hashes(value: Any) -> dict[str, str]:
    if not all(isinstance(text, str) for text in _object(value).values()):
        raise ValueError("its values should be texts")
    return dict(value)


def _overrides(value: Any) -> dict[str, Any]:
    odd = [name for name in _object(value) if not OVERRIDE.match(name)]
    if odd:
        raise ValueError(f"{odd[0][:60]!r} is no name of a field")
    return dict(value)


def _run(value: Any) -> dict[str, Any]:
    """Of the run the records' readers need its steps; the rest may be of a version that knows other fields."""
    if "steps" not in _object(value):
        raise ValueError("it has no steps")
    try:
        _count(value["steps"])
    except ValueError as error:
        raise ValueError(f"its steps: {error}") from None
    return dict(value)


def _each(check: Check) -> Check:
    def checked(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError("it should be a list")
        found = []
        for place, item in enumerate(value, start=1):
            try:
                found.append(check(item))
            except ValueError as error:
                raise ValueError(f"item {place} is {shown(item)}; {error}") from None
        return found

    return checked


# By field: the check, and whether null may stand for it.
CHECKS: dict[str, tuple[Check, bool]] = {
    **dict.fromkeys(("corpus", "track", "recipe", "arm"), (_name, False)),
    **dict.fromkeys(("version", "commit", "ngram_split", "error"), (_text, True)),
    "status": (_status, False),
    "seed": (_whole, False),
    **dict.fromkeys(("steps", "train_tokens", "params"), (_count, True)),
    "modified": (_truth, False),
    "dirty": (_truth, True),
    "run": (_run, False),
    "overrides": (_overrides, False),
    "corpus_sha256": (_hashes, False),
    "machine": (_object, True),
    "rules_broken": (_each(_text), False),
    **dict.fromkeys(("losses", "grad_norms"), (_each(_number), False)),
    **dict.fromkeys(("seconds", "wall_seconds", "peak_mb", "train_loss_last", "train_loss_last10"), (_number, True)),
    **dict.fromkeys(("dev_loss", "dev_bpb", "test_loss", "test_bpb"), (_number, True)),
    **dict.fromkeys(("ngram_uniform", "ngram_unigram", "ngram_kn2", "ngram_kn3"), (_number, True)),
    **dict.fromkeys(("ngram_mkn5", "ngram_best"), (_number, True)),
}


def check_fields(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of the fields that a record has, each checked. Fields of other versions are left out.

    Raises ValueError, naming the field, for a value that it cannot have.
    """
    for name, value in row.items():
        if name not in CHECKS:
            continue
        check, may_be_null = CHECKS[name]
        if value is None and may_be_null:
            yield name, None
            continue
        try:
            yield name, check(value)
        except ValueError as error:
            raise ValueError(f"field {name!r} is {shown(value)}; {error}") from None


def shown(value: Any) -> str:
    """A value in an error: the beginning of a long one."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
