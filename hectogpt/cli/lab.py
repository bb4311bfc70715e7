"""`hectogpt compare` and `hectogpt report`: experiments over seeds, and the pictures and tables of their records.

What happens while trials run goes to stderr, the results (or --json) to stdout.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class CompareArguments:
    """Run recipes over the same seeds and test the differences. A seed changes the first weights and the data order."""

    recipes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of recipes; the first is what the others are compared to."""
    seeds: int = 5
    """How many seeds."""
    first_seed: int = 0
    """The seeds are first-seed, first-seed + 1, ..."""
    corpus: str = "sotu"
    """sotu, tinystories, hf:NAME, or a file, a folder, .jsonl or .bin"""
    track: Literal["closed", "closed+statistics", "open-cpu", "open-gpu"] = "closed"
    """Whose rules to check: closed is 100 steps, 819,200 fresh tokens, 60 M parameters, 10 minutes on 2 cores."""
    steps: int | None = None
    """Another number of steps; such trials are marked modified."""
    without: tuple[str, ...] = ()
    """Parts of the top recipe to leave out, one at a time ("all": each of them)."""
    sweep: tuple[str, ...] = ()
    """FIELD=VALUE,VALUE as in optim.lr=1e-3,3e-3; several make a grid. Such trials are marked modified."""
    out: Path = Path("runs/compare.jsonl")
    """Where the records go, a line a trial. Trials recorded there are not run again."""
    test: bool = False
    """Score the test text too and compare by it; without, by the dev text."""
    threads: int = 0
    """Threads a trial (0: two, or all cores on open-gpu)."""
    dry_run: bool = False
    """Show what would be run."""
    json: bool = False
    """Print the results as JSON on stdout."""
    quiet: bool = False
    """Print errors only."""


def compare(argv: list[str]) -> None:
    """Run `hectogpt compare`."""
    arguments = tyro.cli(CompareArguments, args=argv, prog="hectogpt compare")
    from hectogpt.cli import comparison

    comparison.compare(arguments)


@dataclass(frozen=True)
class ReportArguments:
    """Draw tables, pictures and a page from the records of `hectogpt compare`."""

    ladder: Path = Path("results/ladder.jsonl")
    """The records."""
    out: Path = Path("results")
    """The folder for LADDER.md, ladder.html and the pictures."""
    answers: Path = Path("answers")
    """The folder with learning.template.md, from which learning.md is made (skipped where there is no template)."""


def report(argv: list[str]) -> None:
    """Run `hectogpt report`."""
    arguments = tyro.cli(ReportArguments, args=argv, prog="hectogpt report")
    from hectogpt.lab.report import write_report

    for path in write_report(arguments.ladder, arguments.out, arguments.answers):
        print(path)
