"""The parts of the assignment: names, order, points, functions, and the parts that each needs. For
the kit and the grader.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from hectogpt.serialization import load

SOURCES = ("model_solution.py", "train.py", "utils.py")


@dataclass(frozen=True)
class Part:
    """One part to fill in.

    name: as in `--parts`, in the marks of reference/ and in the name of its test file.
    title: how it is shown.
    file: where it is.
    functions: what is to be written, by qualified name.
    points: 0 for what the course's own starter hands out complete.
    question: its number in the assignment, "" for what the assignment does not ask.
    prefix: how the names of its weights begin in a model's state dict.
    rests_on: parts without which it cannot be built.
    axes: names of its result's axes.
    """

    name: str
    title: str
    file: str
    functions: tuple[str, ...]
    points: int = 0
    question: str = ""
    prefix: str = ""
    rests_on: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The module name of its file."""
        return self.file.removesuffix(".py")

    @property
    def owner(self) -> str:
        """The class that its function belongs to, "" for a plain function."""
        return self.functions[-1].rpartition(".")[0]


ROWS = tomllib.loads(Path(__file__).with_name("parts.toml").read_text(encoding="utf-8"))["part"]
PARTS: tuple[Part, ...] = tuple(load(Part, row) for row in ROWS)
BY_NAME: dict[str, Part] = {part.name: part for part in PARTS}
