"""Exercises in the textbook's files: found by their marks, and replaced by stubs.

A mark is a comment line `# exercise: PART` inside a function. The exercise is what follows it, to the end of the
function; so the files that a student gets are made from the textbook's own and cannot differ from it elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from hectogpt.assignment.parts import BY_NAME
from hectogpt.assignment.stubs import STUBS

MARK = re.compile(r"(?P<indent> +)# exercise: (?P<part>\w+)")
FUNCTION = re.compile(r" *def (\w+)\(")


@dataclass(frozen=True)
class Exercise:
    """One marked region: lines [start, stop) of the file, the mark among them."""

    part: str
    function: str
    indent: str
    start: int
    stop: int


def find_exercises(source: str) -> list[Exercise]:
    """The exercises of a file, in order. Raises ValueError for a mark of an unknown part or outside a function."""
    lines = source.splitlines()
    found = []
    for start, line in enumerate(lines):
        mark = MARK.fullmatch(line)
        if mark is None:
            continue
        part, indent = mark["part"], mark["indent"]
        names = [name[1] for name in map(FUNCTION.match, lines[:start]) if name]
        if not names or (part, names[-1]) not in STUBS:
            raise ValueError(f"line {start + 1}: no stub for exercise {part!r} here")
        stop = start + 1
        while stop < len(lines) and (not lines[stop].strip() or lines[stop].startswith(indent)):
            stop += 1
        while not lines[stop - 1].strip():
            stop -= 1
        found.append(Exercise(part, names[-1], indent, start, stop))
    return found


def with_stubs(source: str, parts: Collection[str]) -> str:
    """The file with the exercises of these parts left out; the others are given, without their marks."""
    lines, exercises = source.splitlines(), find_exercises(source)
    for exercise in reversed(exercises):
        if exercise.part in parts:
            lines[exercise.start : exercise.stop] = stub(exercise)
        else:
            del lines[exercise.start]
    names = list(dict.fromkeys(exercise.part for exercise in exercises if exercise.part in parts))
    title = [f"# EXERCISES in this file: {', '.join(names)}", ""] if names else []
    return "\n".join([*title, *lines, ""])


def stub(exercise: Exercise) -> list[str]:
    """The lines that stand in place of an exercise: what to write, and an error until it is written."""
    part = BY_NAME[exercise.part]
    points = f", {part.points} point{'s' if part.points != 1 else ''}" if part.points else ""
    question = f" ({part.question}{points})" if part.question else ""
    text = [f"EXERCISE {part.name}{question}. Its test: pytest tests/test_{part.name}.py"]
    text += STUBS[exercise.part, exercise.function].strip("\n").splitlines()
    comment = [f"{exercise.indent}# {line}".rstrip() for line in text]
    return [
        *comment,
        f'{exercise.indent}raise NotImplementedError("exercise {part.name}: {exercise.function} is not written yet")',
    ]
