"""`hectogpt compare`: recipes over paired seeds. Progress goes to stderr, the results (or --json) to stdout."""

from __future__ import annotations

import tyro

from hectogpt.cli.options import CompareArguments

EXAMPLES = """\
  hectogpt compare baseline muon --seeds 3
  hectogpt compare top my_idea.py:muon --until decided --html verdict.html
  hectogpt compare top my_idea.py:muon --budget 60m
  hectogpt compare top --without all --seeds 5 --json
  hectogpt compare adamw_128 --sweep optim.lr=0.001,0.003 --steps 50"""


def main(argv: list[str]) -> None:
    """Run the missing trials and print what all of them say."""
    arguments = tyro.cli(CompareArguments, args=argv, prog="hectogpt compare")
    from hectogpt.cli.compare_run import compare  # loads torch

    compare(arguments, argv)
