"""`hectogpt assignment drill`: ask questions on known mistakes, one at a time, in the terminal."""

from __future__ import annotations

import random
import secrets
import shlex
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from hectogpt import errors
from hectogpt.assignment.kit import folder_of, with_stubs
from hectogpt.cli import grade
from hectogpt.cli.options import AssignmentDrillOptions, GradeOptions
from hectogpt.display import printable
from hectogpt.errors import UserError
from hectogpt.exam.labs import WORDS
from hectogpt.exam.questions import KINDS, LETTERS, LEVELS, Question, draw, text_of
from hectogpt.files import check_free
from hectogpt.grade.submission import SOLUTION

WIDTH = 100


def main(options: AssignmentDrillOptions) -> None:
    """Run the drill, write a wrong program, or check one."""
    torch.set_num_threads(1)  # all that is computed is small
    if min(options.questions, options.first) < 1:
        raise UserError("nothing to ask", why="questions and first must be positive")
    seed = secrets.randbelow(10_000) if options.seed is None else options.seed
    if options.check:
        grade.main(GradeOptions((options.check,), hints=options.hints))
    elif options.code:
        write_program(options.code, seed, options.level)
        folder = printable(shlex.quote(str(options.code)))
        print(
            f"{folder}/model_solution.py has one mistake; its comments are right. Find it and "
            f"repair it, then\n\n  hectogpt assignment drill --check {folder}"
        )
    else:
        ask_all(options, seed)


def ask_all(options: AssignmentDrillOptions, seed: int) -> None:
    """Ask the questions and print the score. The end of the input, or q, ends the drill."""
    level = f" --level {options.level}" if options.level else ""
    print(f"{options.questions} questions of seed {seed}. Answer with a letter; q ends the drill.")
    points = 0
    asked = 0
    chance = 0.0
    number = options.first
    try:
        found = drilled(seed, options.level, options.first)
        for question in islice(found, options.questions):
            print(f"\n--- question {number}: {question.kind}, level {question.level} ---\n")
            print("\n".join(text_of(question, WIDTH)), flush=True)
            letter = read_letter(len(question.choices))
            points += answer(question, letter)
            asked += 1
            chance += 1 / len(question.choices)
            number += 1
    except (EOFError, KeyboardInterrupt):
        print()
    print(f"\n{points} of {asked} right; guessing gives {chance:.1f}")
    if asked < options.questions:
        left = options.questions - asked
        print(
            f"resume:  hectogpt assignment drill --seed {seed}{level} --first {number} "
            f"--questions {left}"
        )
    else:
        print("next:    hectogpt assignment drill --code wrong      a wrong program to repair")


def read_letter(count: int) -> str:
    """Read a letter of one of the choices. Raises EOFError at the end of the input, or for q."""
    while True:
        print("\n> ", end="", flush=True)
        line = sys.stdin.readline()
        letter = line.strip().lower().rstrip(").")
        if not line or letter == "q":
            raise EOFError
        if len(letter) == 1 and letter in LETTERS[:count]:
            return letter
        print(f"a letter from a to {LETTERS[count - 1]}, or q")


def answer(question: Question, letter: str) -> bool:
    """Print whether an answer is right, and why. Returns whether it is."""
    right = LETTERS[question.answer]
    print("right" if letter == right else f"wrong: it is {right}")
    for one in dict.fromkeys((letter, right)):
        print(f"  {one}) {question.choices[LETTERS.index(one)].reason}")
    if question.effect:
        print(f"  in the grader's tests: {question.effect}")
    print(f"  more: {question.page}")
    return letter == right


# --- what is asked


def drilled(seed: int, level: int | None, first: int = 1) -> Iterator[Question]:
    """Yield the questions of a drill without end, from the one with this number on. Without a
    level they become harder. No lab comes twice in a row of three."""
    recent: list[str] = []
    for number in count(1):
        kind = list(KINDS)[(number - 1) % len(KINDS)]
        now = level or min(LEVELS[-1], 1 + (number - 1) // 4)
        found = draw(f"drill {seed} {number}", kind, now, recent[-2:])
        recent.append(found.lab)
        if number >= first:
            yield found


def wrong_source(source: str, program: dict[str, Any]) -> str:
    """Return the textbook's source with the edits of a wrong program."""
    for old, new in ((program["old"], program["new"]), program.get("also", ("", ""))):
        source = source.replace(old, new)
    return source


def write_program(folder: Path, seed: int, level: int | None) -> None:
    """Write the textbook's model_solution.py with one mistake into a new or empty folder. Raises
    UserError."""
    known = [one for one in WORDS["program"] if level in (None, one["level"])]
    one = random.Random(f"program {seed} {level}").choice(known)
    text = (folder_of("reference") / SOLUTION).read_text(encoding="utf-8")
    with errors.writing(folder):
        check_free(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SOLUTION).write_text(with_stubs(wrong_source(text, one), ()), encoding="utf-8")
