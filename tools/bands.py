"""hectogpt/lab/baselines/bands.json from results/ladder.jsonl: python -m tools.bands.

Mean, SD and number of the dev losses of every recipe with two runs or more, by "recipe corpus steps".
"""

from __future__ import annotations

import json
import statistics

from hectogpt.lab.ladder import LADDER, baseline
from hectogpt.lab.record import read_records
from tools import ROOT
from tools.report.leaderboard import build_leaderboards

OUT = ROOT / "hectogpt" / "lab" / "baselines" / "bands.json"


def bands() -> dict[str, list[float | int]]:
    """The content of the file: records of settings that a recipe no longer has are left aside, as in LADDER.md."""
    ladder = [baseline.__name__, *(rung.__name__ for rung in LADDER)]
    found: dict[str, list[float | int]] = {}
    for board in build_leaderboards(read_records(ROOT / "results" / "ladder.jsonl"), ladder):
        for entry in board.entries():
            losses = [record.dev_loss for record in entry.records if record.dev_loss is not None]
            if not entry.overrides and len(losses) > 1:
                band = [round(statistics.mean(losses), 4), round(statistics.stdev(losses), 4), len(losses)]
                found[f"{entry.name} {board.corpus} {entry.steps}"] = band
    return dict(sorted(found.items()))


if __name__ == "__main__":
    OUT.write_text(json.dumps(bands(), indent=0) + "\n", encoding="utf-8")
