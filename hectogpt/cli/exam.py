"""`hectogpt assignment drill`: ask questions about known mistakes, one at a time, in the terminal.

`hectogpt assignment exam`: write the sheets for a class, and mark them.
"""

from __future__ import annotations

import json
import random
import secrets
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import torch

from hectogpt import errors
from hectogpt.assignment.kit import folder_of, with_stubs
from hectogpt.cli import grade
from hectogpt.cli.options import AssignmentDrillOptions, AssignmentExamOptions, GradeOptions
from hectogpt.display import printable
from hectogpt.errors import Setting, UserError
from hectogpt.exam import sheets
from hectogpt.exam.labs import WORDS
from hectogpt.exam.questions import KINDS, LETTERS, Question, draw, text_of
from hectogpt.files import check_free, read_json_object, write_atomic
from hectogpt.grade.result import csv_of
from hectogpt.grade.submission import SOLUTION
from hectogpt.web.page import fill

SAY: dict[str, str] = WORDS["say"]
torch.set_num_threads(1)  # all computations are small


def main(options: AssignmentDrillOptions | AssignmentExamOptions) -> None:
    """Run the command. Raises UserError."""
    if isinstance(options, AssignmentDrillOptions):
        drill(options)
    elif options.mark:
        mark(options.mark, options.file)
    else:
        write(options)


def drill(options: AssignmentDrillOptions) -> None:
    """Run the drill, write a wrong program, or check one."""
    if min(options.questions, options.first) < 1:
        raise UserError("questions or first", why="one is below 1")
    seed = secrets.randbelow(10_000) if options.seed is None else options.seed
    if options.check:
        grade.main(GradeOptions((options.check,), hints=options.hints))
    elif options.code:
        write_program(options.code, seed, options.level)
        folder = printable(shlex.quote(str(options.code)))
        print(SAY["program"].format(folder=folder))
    else:
        ask_all(options, seed)


def ask_all(options: AssignmentDrillOptions, seed: int) -> None:
    """Ask the questions and print the score. The end of the input, or q, ends the drill early."""
    print(SAY["asks"].format(count=options.questions, seed=seed))
    points = 0
    number = options.first
    try:
        found = drilled(seed, options.level, options.first)
        for question in islice(found, options.questions):
            print(f"\n--- question {number}: {question.kind}, level {question.level} ---\n")
            print("\n".join(text_of(question)), flush=True)
            letter = read_letter(len(question.choices))
            points += answer(question, letter)
            number += 1
    except (EOFError, KeyboardInterrupt):
        print()
    asked = number - options.first
    print(f"\n{points} of {asked} right")
    level = f" --level {options.level}" if options.level else ""
    left = options.questions - asked
    print(
        SAY["resume" if left else "next"].format(seed=seed, level=level, first=number, left=left)
    )


def read_letter(count: int) -> str:
    """Read the letter of a choice. Raises EOFError at the end of the input, or for q."""
    while True:
        print("\n> ", end="", flush=True)
        line = sys.stdin.readline()
        letter = line.strip().lower().rstrip(").")
        if not line or letter == "q":
            raise EOFError
        if len(letter) == 1 and letter in LETTERS[:count]:
            return letter
        print(f"type a letter from a to {LETTERS[count - 1]}, or q")


def answer(question: Question, letter: str) -> bool:
    """Print whether an answer is right, and why. Return True if it is."""
    right = LETTERS[question.answer]
    print("right" if letter == right else f"wrong: it is {right}")
    for one in dict.fromkeys((letter, right)):
        print(f"  {one}) {question.choices[LETTERS.index(one)].reason}")
    print(f"  more: {question.page}")
    return letter == right


# --- questions and programs


def drilled(seed: int, level: int | None, first: int = 1) -> Iterator[Question]:
    """Yield endless questions for a drill, starting with number `first`.

    Without a level, they become harder. Three questions in a row come from three different labs.
    """
    recent = [""] * 2
    for number in count(1):
        kind = list(KINDS)[(number - 1) % len(KINDS)]
        now = level or min(3, 1 + (number - 1) // 4)
        found = draw(f"drill {seed} {number}", kind, now, recent)
        recent = [recent[1], found.lab]
        if number >= first:
            yield found


def write_program(folder: Path, seed: int, level: int | None) -> None:
    """Write the textbook's model_solution.py with one mistake into a new or empty folder.

    Raises UserError.
    """
    known = [one for one in WORDS["program"] if level in (None, one["level"])]
    one = random.Random(f"program {seed} {level}").choice(known)
    text = (folder_of("reference") / SOLUTION).read_text(encoding="utf-8")
    with errors.writing(folder):
        check_free(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SOLUTION).write_text(
            with_stubs(text.replace(one["old"], one["new"]), ()), encoding="utf-8"
        )


# --- exams


def write(options: AssignmentExamOptions) -> None:
    """Write the files of an exam into a new or empty folder."""
    plan = WORDS["exam"][: options.questions]
    if not plan or len(plan) != options.questions:
        raise UserError(Setting("questions", options.questions), why=SAY["count"])
    secret = options.seed or secrets.token_hex(8)
    names = [row["name"] for row in sheets.read_table(options.file, "name")]
    check_free(options.out)
    made = sheets.make_sheets(names, secret, plan)
    rows = [{"name": one.name, "sheet": one.code} for one in made]
    asked = {
        one.code: [{"lines": text_of(q, 90), "count": len(q.choices)} for q in one.questions]
        for one in made
    }
    record = {"secret": secret, "sheets": [sheets.record_of(one) for one in made]}
    contents = {
        "page.html": fill("exam", {"sheets": asked}),
        "answers.csv": csv_of([row | {"answers": ""} for row in rows]),
        "key.csv": csv_of([row | {"key": one.key} for row, one in zip(rows, made, strict=True)]),
        "exam.json": json.dumps(record, allow_nan=False),
    }
    with errors.writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        pages = [page for one in made for page in sheets.pages_of(one)]
        sheets.write_pdf(options.out / "sheets.pdf", pages)
    for name, content in contents.items():
        write_atomic(options.out / name, content)
    chance = sum(1 / KINDS[kind] for kind, _ in plan)
    folder = printable(str(options.out))
    print(SAY["made"].format(folder=folder, sheets=len(made), count=len(plan), chance=chance))


def mark(folder: Path, answers: Path) -> None:
    """Write marks.csv into the folder, and print a summary."""
    path = folder / "exam.json"
    known = read_json_object(path, fix=SAY["folder"], code=errors.DATA)
    rows = sheets.read_table(answers, "name", "answers")
    try:
        marks = sheets.mark(rows, known["sheets"])
    except (KeyError, TypeError) as error:
        raise errors.unreadable(path, error, fix=SAY["folder"]) from None
    write_atomic(folder / "marks.csv", csv_of(marks))
    mean = sum(int(row["points"]) for row in marks) / len(marks)
    print(
        f"sheets: {len(marks)}; {mean:.2f} points on average: {printable(str(folder))}/marks.csv"
    )
    wrong = Counter(
        one.partition(" ")[2]
        for row in marks
        for one in row["confused"].split("; ")
        if one and "no answer" not in one
    )
    for words, times in wrong.most_common(10):
        print(f"  {times:>4}  {printable(words)}")
