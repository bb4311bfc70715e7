"""`hectogpt compare`: recipes over paired seeds. Progress goes to stderr, the results (or --json) to stdout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Arguments:
    """Run recipes over the same seeds and test the differences. A seed changes the first weights and the data order."""

    recipes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of recipes; the first is what the others are compared to. `top` is the ladder's last rung."""
    seeds: int = 5
    """How many seeds."""
    first_seed: int = 0
    """The seeds are first-seed, first-seed + 1, ..."""
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
    quiet: bool = False
    """Print errors only."""


def main(argv: list[str]) -> None:
    """Run `hectogpt compare`."""
    run(tyro.cli(Arguments, args=argv, prog="hectogpt compare"))


def run(arguments: Arguments) -> None:
    """Run the missing trials and print what all of them say."""
    from hectogpt.cli.compare_run import compare  # loads torch

    compare(arguments)
