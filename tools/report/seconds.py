"""Seconds of a hundred steps by recipe and corpus, measured on one machine in one pass (`python -m bench recipes`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

QUESTION = "seconds of 100 steps"


@dataclass(frozen=True)
class Seconds:
    """The timings of the newest pass. of: (corpus, recipe) -> seconds. stand_in: missing corpora, for which a text of
    the same shapes was read. where: machine, threads, date and commit as text; "" without a pass."""

    of: dict[tuple[str, str], float] = field(default_factory=dict)
    stand_in: tuple[str, ...] = ()
    rounds: int = 0
    where: str = ""


NO_SECONDS = Seconds()


def read_seconds(path: Path) -> Seconds:
    """The newest timings of each corpus in a file, all with the machine, threads and commit of the newest pass. Without
    the file, there are none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [record for record in map(json.loads, lines) if record["question"] == QUESTION]
    if not found:
        return NO_SECONDS
    newest = found[-1]
    same = [record for record in found if all(record[n] == newest[n] for n in ("machine", "threads", "commit"))]
    by_corpus = {record["rows"][0]["setting"]: record["rows"] for record in same}
    of = {(corpus, row["contender"]): float(row["seconds"]) for corpus, rows in by_corpus.items() for row in rows}
    stand_in = tuple(corpus for corpus, rows in by_corpus.items() if rows[0].get("text") == "stand-in")
    where = f"{newest['machine']}; {newest['threads']} threads; {newest['date'][:10]}, commit {newest['commit']}"
    return Seconds(of, stand_in, int(newest["rows"][0].get("rounds", 0)), where)
