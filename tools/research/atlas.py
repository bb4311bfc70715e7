"""`python -m tools.research.atlas [NAME ...]`: trials of docs/literature/, and the atlas's pages.

Trials that results/atlas.jsonl has are not run again.

One rule for all ideas: the base is docs/literature/base.py; on each text an idea has five paired seeds, and more, up to
twelve, as long as its verdict is open and its effect is above 0.02. The trials of the base are shared. The test text is
scored once for each trial. An idea whose docstring has a line "Sweep:" gets its learning rate from one seed on dev
first: `python -m tools.research.atlas sweep NAME ...` prints the losses, and the best value goes into the idea's file.

Trials are those of `hectogpt compare`, so an interrupted run resumes. `--workers 2` runs two at a time, each with one
thread. At the end docs/atlas.md and docs/atlas.html are written; `page` alone writes them from the records as they are.
docs/atlas.md has the rules, and the command for one row by hand.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hectogpt
from hectogpt.lab.losses import LossVerdict
from hectogpt.lab.verdict import ComparisonResult
from tools import ROOT
from tools.report.atlas import (
    BASE,
    FEWEST,
    FIRST_SEEDS,
    MOST,
    RECORDS,
    SWEEP_SEED,
    SWEEPS,
    WORTH_MORE,
    Idea,
    ideas,
    write_pages,
)


def compare(arms: Sequence[str], corpus: str, first_seed: int, seeds: int, workers: int) -> ComparisonResult:
    """The comparison of the arms on the test text, with the missing trials run."""
    how: dict[str, Any] = {"threads": 1, "workers": workers, "test": True, "out": ROOT / RECORDS, "quiet": True}
    return hectogpt.compare(arms, corpus=corpus, first_seed=first_seed, seeds=seeds, **how)


def verdict_of(found: ComparisonResult) -> LossVerdict:
    """The verdict on the second arm, valid at every look."""
    base, idea = (
        {str(r.seed): r.test_loss for r in result.records if r.test_loss is not None} for result in found.results
    )
    return hectogpt.verdict(base, idea)


def run(idea: Idea, corpus: str, workers: int) -> None:
    """Run an idea's trials on one text, until its verdict is clear or its effect too small to follow."""
    for seeds in range(FEWEST, MOST + 1):
        found = compare([BASE, idea.path], corpus, FIRST_SEEDS[Path(corpus).name], seeds, workers)
        if len(found.results) < 2:
            print(f"{idea.name}: {'; '.join(found.notes)}", flush=True)
            return
        verdict = verdict_of(found)
        if verdict.verdict != "unproven" or abs(verdict.gain) <= WORTH_MORE:
            break
    print(f"{Path(corpus).name} {idea.name}: {verdict.verdict}, {verdict.gain:+.4f}, {verdict.pairs} pairs", flush=True)


def sweep(idea: Idea, corpus: str, workers: int) -> None:
    """Print the dev losses of an idea's learning rates, one seed each."""
    field, values = idea.sweep.removesuffix(".").split(" of ")
    command = [sys.executable, "-m", "hectogpt", "compare", f"{idea.path}@{BASE}", "--corpus", corpus]
    command += f"--seeds 1 --first-seed {SWEEP_SEED} --threads 1 --workers {workers} --out {SWEEPS}".split()
    subprocess.run([*command, "--sweep", f"{field}={values.replace(' ', '')}"], cwd=ROOT, check=True)


def main() -> None:
    """Run the trials that are missing, or the sweeps, and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help="ideas; none: all. `sweep` first: only their learning rates; `page`: none"
    )
    parser.add_argument("--corpora", nargs="+", default=list(FIRST_SEEDS), help="names or folders of both texts")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    action, names = (
        (given.names[0], given.names[1:]) if given.names[:1] in (["sweep"], ["page"]) else ("run", given.names)
    )
    if unknown := set(names) - {idea.name for idea in ideas()}:
        parser.error(f"no file of docs/literature/*/ with a claim has the name {', '.join(sorted(unknown))}")
    for idea in ideas(names) if action != "page" else []:
        for corpus in given.corpora:
            if action == "run":
                run(idea, corpus, given.workers)
            elif idea.sweep:
                sweep(idea, corpus, given.workers)
    for path in write_pages():
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
