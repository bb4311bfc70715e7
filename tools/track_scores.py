"""`python -m tools.track_scores CORPUS RECIPE SEED [TRACK ...]`: one run, scored by the rules of several tracks.

The training is the same in *closed*, *closed+counting*, *retrieval* and *adaptive* (the default: all four), so it is
done once. Appends a record for each to results/ladder.jsonl, as `hectogpt compare --test --track` would.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from hectogpt import __version__, process
from hectogpt.data import open_corpus
from hectogpt.lab.compare import Comparison, Trial
from hectogpt.lab.plan import Arm
from hectogpt.lab.recipes import recipe
from hectogpt.lab.tracks import find_track
from hectogpt.lab.trial import PACKAGE, SCORINGS, five_digits
from hectogpt.training.session import Session
from tools import ROOT

OUT = ROOT / "results" / "ladder.jsonl"
TRACKS = ("closed", "closed+counting", "retrieval", "adaptive")
SPLITS = ("dev", "test")


def main(corpus_name: str, recipe_name: str, seed: int, tracks: Sequence[str] = TRACKS) -> None:
    """Train once; score and record by each of these tracks."""
    corpus, arm = open_corpus(corpus_name), Arm(recipe_name, recipe(recipe_name), {})
    trial = Trial(arm, seed)
    comparisons = [Comparison([arm], [seed], corpus, find_track(name), OUT, test=True) for name in tracks]
    missing = [comparison for comparison in comparisons if comparison.missing()]
    if not missing:
        print("all recorded")
        return
    begun, revision = time.perf_counter(), process.revision(PACKAGE)
    session = Session.open(comparisons[0].run_of(trial), corpus)
    for step in session.steps():
        print(f"\rstep {step.number}", end="", flush=True)
    for split in SPLITS:
        session.evaluate(split)
    result = session.result()
    fields = result.summary() | {"version": __version__, "commit": revision.commit, "dirty": revision.dirty}
    fields |= {"seconds": round(result.seconds, 2), "peak_mb": round(result.peak_mb, 1), "status": "ok"}
    fields |= {"losses": five_digits(result.losses), "grad_norms": five_digits(result.grad_norms)}
    for comparison in missing:
        score = SCORINGS.get(comparison.track.scoring)
        fields["wall_seconds"] = round(time.perf_counter() - begun, 2)
        record = comparison.add(trial, fields | (score(session, SPLITS) if score else {}))
        print(f"\r{comparison.track.name}, {corpus_name}, seed {seed}: {record.outcome('test')}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:] or TRACKS)
