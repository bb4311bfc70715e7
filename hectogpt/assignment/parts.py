"""The parts of the assignment, for the kit and the grader: names, order, points, functions."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from hectogpt.serialization import load

SOURCES = ("model_solution.py", "train.py", "utils.py")


@dataclass(frozen=True)
class Part:
    """One part to fill in.

    name: its name in `--parts`, in the `# exercise:` comments and in the name of its test file.
    title: the name that is shown.
    file: the file that contains it.
    functions: the qualified names of the functions to write.
    points: its points; 0 if the course's own starter contains the code.
    question: its number in the assignment; "" if the assignment does not ask for it.
    prefix: the prefix of its weights' names in a model's state dict.
    rests_on: the parts that it cannot be built without.
    axes: the names of its result's axes.
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
        """The class that its function belongs to; "" for a plain function."""
        return self.functions[-1].rpartition(".")[0]


ROWS = tomllib.loads(Path(__file__).with_name("parts.toml").read_text(encoding="utf-8"))["part"]
PARTS: tuple[Part, ...] = tuple(load(Part, row) for row in ROWS)
BY_NAME: dict[str, Part] = {part.name: part for part in PARTS}
