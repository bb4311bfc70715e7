"""A known mistake as a variation of the computation: one or two of its methods replaced by what students write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hectogpt.grade.computation import Computation

Method = Callable[..., Any]


@dataclass(frozen=True)
class Diagnosis:
    """names: the mistake, or both of a pair. equivalent: other names that explain the same results. where, what: the
    second and the third hint. alternatives: what else explains the same results, the first few as sentences."""

    names: tuple[str, ...]
    where: str
    what: str
    equivalent: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """For tables and counts."""
        return " + ".join(self.names)


@dataclass(frozen=True)
class Mistake:
    """name: short and stable, for tables. where: the tensor or step that it is in. what: the mistake in a sentence
    that does not give the code away. changes: method of Computation -> what takes its place."""

    name: str
    part: str
    where: str
    what: str
    changes: Mapping[str, Method] = field(compare=False, repr=False)


def of(part: str) -> Callable[..., Mistake]:
    """For tables: a function of name, where, what and the changed methods that makes a mistake in the part."""

    def mistake(name: str, where: str, what: str, **changes: Method) -> Mistake:
        return Mistake(name, part, where, what, changes)

    return mistake


def combine(mistakes: tuple[Mistake, ...]) -> type[Computation] | None:
    """The computation with all these mistakes in it; None if two of them change the same step."""
    changes: dict[str, Method] = {}
    for mistake in mistakes:
        if changes.keys() & mistake.changes.keys():
            return None
        changes |= mistake.changes
    return type("Mistaken", (Computation,), changes)
