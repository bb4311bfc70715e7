"""`hectogpt compare`: recipes over paired seeds. Progress goes to stderr, the results (or --json) to stdout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

EXAMPLES = """\
  hectogpt compare baseline muon --seeds 3
  hectogpt compare top my_idea.py:muon --until decided --html verdict.html
  hectogpt compare top my_idea.py:muon --budget 60m
  hectogpt compare top --without all --seeds 5 --json
  hectogpt compare adamw_128 --sweep optim.lr=0.001,0.003 --steps 50"""


@dataclass(frozen=True)
class Arguments:
    """Run recipes over the same seeds, test the differences and give a verdict. A seed changes the first weights and
    the data order."""

    recipes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of recipes; the first is what the others are compared to. `top` is the ladder's last rung."""
    seeds: int | None = None
    """How many seeds: 5; with budget or until the most of them, 1000."""
    first_seed: int = 0
    """The seeds are first-seed, first-seed + 1, ..."""
    budget: str | None = None
    """Run as many seeds as fit into this time, as in 90s, 60m or 2h; at least one. A seed is started only if it fits
    by the time that the slowest one took."""
    until: Literal["decided"] | None = None
    """decided: go on seed by seed until each recipe is better than the first, worse, or within 0.02 of it. The test
    stays valid although it looks after every seed; it is wrong about a recipe in 5 of 100 comparisons at most."""
    corpus: str = "sotu"
    """sotu, tinystories, hf:NAME, or a file, a folder, .jsonl or .bin"""
    track: str = "closed"
    """Whose rules to check: closed is 100 steps, 819,200 fresh tokens, 60 M parameters, 10 minutes on 2 cores. An
    unknown name lists the others."""
    steps: int | None = None
    """Another number of steps; such trials are marked modified."""
    without: tuple[str, ...] = ()
    """Rungs of the top recipe to leave out, one at a time ("all": each of them)."""
    sweep: tuple[str, ...] = ()
    """FIELD=VALUE,VALUE as in optim.lr=0.001,0.003; several make a grid. Such trials are marked modified."""
    out: Path = Path("runs/compare.jsonl")
    """Where the records go, a line a trial. Trials recorded there are not run again, unless they crashed."""
    test: bool = False
    """Score the test text too and compare by it; without, by the dev text."""
    threads: int = 0
    """Threads a trial (0: as many as the track allows, at most one on each core)."""
    dry_run: bool = False
    """Show what would be run."""
    json: bool = False
    """Print the results as JSON on stdout."""
    html: Path | None = None
    """Write a page with verdicts, curves, table and the source of ideas to this file; it works offline."""
    quiet: bool = False
    """Print errors only."""


def main(argv: list[str]) -> None:
    """Run `hectogpt compare`."""
    run(tyro.cli(Arguments, args=argv, prog="hectogpt compare"))


def run(arguments: Arguments) -> None:
    """Run the missing trials and print what all of them say."""
    from hectogpt.cli.compare_run import compare  # loads torch

    compare(arguments)
