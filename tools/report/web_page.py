"""The ladder as a page that opens without a network: loss rung by rung, and the table.

It is written beside LADDER.md, and the site has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hectogpt.web.page import fill
from tools.report.leaderboard import Leaderboard
from tools.report.tables import ladder_table

LEVELS = {"unigram": "unigram", "kn2": "bigram", "best": "best counting"}
COLUMNS = ("#", "rung", "what changed", "dev", "test", "n", "bits/byte", "gain over the rung below [95 %]", "p")


def web_page(boards: Sequence[Leaderboard], descriptions: Mapping[str, str]) -> str:
    """The page as HTML, for every corpus and track that has rungs and scores a model by itself."""
    text = "Each rung changes one thing in the run below it and keeps the hundred steps. Losses are nats per token of "
    text += "held-out text, means over seeds; gains are over paired seeds, positive is better."
    blocks: list[dict[str, Any]] = [{"text": text, "kind": "soft"}]
    for board in boards:
        if not (board.rungs and board.alone):
            continue
        split = board.ngram_split
        counted = board.ngrams.get(split, {})
        levels = [
            {"name": f"{LEVELS[name]} {counted[name]:.2f}", "y": counted[name]} for name in LEVELS if name in counted
        ]
        found = [(place, entry.summary(split)) for place, entry in enumerate(board.rungs)]
        points = [[place, round(summary.mean, 4)] for place, summary in found if summary is not None]
        label = f"Loss on {split} by rung; dashed: n-gram models"
        losses = {"label": label, "xLabel": "rung", "yLabel": "nats per token", "height": 320}
        losses |= {"curves": [{"name": "", "points": points}], "levels": levels}
        table = ladder_table(board, descriptions)
        places = [table.header.index(name) for name in COLUMNS]
        words = {name: {"kind": "words"} for name in ("rung", "what changed")}
        rows = [
            [
                {"text": row[place].replace(" ± ", "\u00a0±\u00a0")} | words.get(name, {})
                for name, place in zip(COLUMNS, places, strict=True)
            ]
            for row in table.rows
        ]
        blocks += [{"heading": board.name}, {"chart": losses}, {"table": {"head": list(COLUMNS), "rows": rows}}]
    return fill("report", {"title": "The ladder: one change a rung, a hundred steps each", "blocks": blocks})
