"""`python -m tools.report`: LADDER.md, learning.md and the pictures from the records of `hectogpt compare`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hectogpt.errors import UserError
from tools.report import write_report


def main() -> int:
    """Write the report and print the path of each file. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__)
    results = Path("results")
    parser.add_argument("--ladder", type=Path, default=results / "ladder.jsonl", help="the records")
    parser.add_argument("--timings", type=Path, default=results / "seconds.jsonl", help="of `python -m bench recipes`")
    parser.add_argument("--ngrams", type=Path, default=results / "ngrams.jsonl", help="of `python -m tools.ngrams`")
    parser.add_argument("--out", type=Path, default=results, help="the folder for LADDER.md and pictures/")
    parser.add_argument("--answers", type=Path, default=Path("answers"), help="the folder with learning.template.md")
    options = parser.parse_args()
    try:
        paths = write_report(
            options.ladder, options.out, options.answers, timings=options.timings, ngrams=options.ngrams
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    print("\n".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
