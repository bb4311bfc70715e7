"""`hectogpt report`: tables, pictures, a page and the written answer from the records of `hectogpt compare`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from hectogpt.cli.console import one_line

EXAMPLES = """\
  hectogpt report
  hectogpt report --ladder runs/compare.jsonl --out report --json"""


@dataclass(frozen=True)
class Arguments:
    """Draw tables, pictures and a page from the records of `hectogpt compare`."""

    ladder: Path = Path("results/ladder.jsonl")
    """The file of records."""
    timings: Path = Path("results/seconds.jsonl")
    """The file with the seconds of `python -m bench recipes`; without it loss is not drawn against seconds."""
    ngrams: Path = Path("results/ngrams.jsonl")
    """The file with n-gram baselines that older records lack; it need not exist."""
    out: Path = Path("results")
    """The folder for LADDER.md, ladder.html and pictures/."""
    answers: Path = Path("answers")
    """The folder with learning.template.md, from which learning.md is made; without that file no answer is written."""
    json: bool = False
    """Print the paths as one JSON object."""


def main(argv: list[str]) -> None:
    """Run `hectogpt report`."""
    run(tyro.cli(Arguments, args=argv, prog="hectogpt report"))


def run(arguments: Arguments) -> None:
    """Write the report and print the path of each file."""
    from hectogpt.lab.report import write_report

    paths = write_report(
        arguments.ladder, arguments.out, arguments.answers, timings=arguments.timings, ngrams=arguments.ngrams
    )
    if arguments.json:
        print(json.dumps({"files": [str(path) for path in paths]}, allow_nan=False))
    else:
        print("\n".join(one_line(str(path)) for path in paths))
