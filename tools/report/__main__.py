"""`python -m tools.report`: LADDER.md, learning.md and the pictures from the records of `hectogpt compare`."""

from __future__ import annotations

from tools import ROOT
from tools.report import BANDS, write_report

RESULTS = ROOT / "results"

if __name__ == "__main__":
    for path in write_report(RESULTS / "ladder.jsonl", RESULTS, ROOT / "answers", BANDS):
        print(path.relative_to(ROOT))
