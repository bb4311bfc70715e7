"""`python -m tools.research.atlas [NAME ...]`: trials of docs/literature/, and the atlas's pages.

One rule for all ideas: the base is docs/literature/base.py; on each text an idea gets five paired seeds, then more, up
to twelve, while its verdict is open and its effect is above 0.02. The trials of the base are shared. The test text is
scored once for each trial. An idea whose docstring has a line "Sweep:" gets its learning rate from one seed on dev
first: `python -m tools.research.atlas sweep NAME ...` prints the losses, and the best value goes into the idea's file.
`half-life` runs the ten largest effects and the ladder for 25 to 200 steps, `interactions` the largest gain of each
kind together, without ideas that double a run's time. `seconds NAME ...` times steps of ideas in turns with steps of
the base; the machine must be quiet.

Trials are those of `hectogpt compare`, so an interrupted run resumes. `--workers 2` runs two at a time, each with one
thread. At the end docs/atlas.md, which has the rules, and docs/atlas.html are written; `page` only writes these.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import trim_mean

import hectogpt
from bench.recipes import take_step
from bench.record import machine
from hectogpt import process
from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.files import append_line
from hectogpt.lab.ideas import find_run
from hectogpt.lab.record import changed
from hectogpt.lab.verdict import ComparisonResult
from hectogpt.training.session import Session
from tools import ROOT
from tools.report import atlas, ladder_names
from tools.report.atlas import BASE, FEWEST, FIRST_SEEDS, FRESH, HORIZONS, STEPS, Idea, Row, ideas

LARGEST = 10  # effects in the figures
SLOW = 2.0  # times the base's time: such an idea would slow down every run of the interactions
TIMED = range(0, 100, 3)  # the first is a warm-up; a third of the others update the eigenbases of SOAP, as in a run
ACTIONS = ("page", "sweep", "seconds", "half-life", "interactions")


def compare(arms: Sequence[str], corpus: str, seeds: int, workers: int, fresh: int = 0, **how: Any) -> ComparisonResult:
    """Run the missing trials of these arms, and compare them on the test text."""
    how |= {"threads": 1, "workers": workers, "test": True, "out": ROOT / atlas.RECORDS, "quiet": True}
    return hectogpt.compare(arms, corpus=corpus, first_seed=FIRST_SEEDS[Path(corpus).name] + fresh, seeds=seeds, **how)


def run(idea: Idea, corpus: str, workers: int) -> None:
    """Run an idea's trials on one text, until its verdict is clear or its effect too small to follow."""
    for seeds in range(FEWEST, atlas.MOST + 1):
        found = compare([BASE, idea.path], corpus, seeds, workers)
        if len(found.results) < 2:
            print(f"{idea.name}: {'; '.join(found.notes)}", flush=True)
            return
        base, new = ({record.seed: record for record in result.records} for result in found.results)
        effect = atlas.effect_of(base, new, FIRST_SEEDS[Path(corpus).name])
        if not effect.is_open:
            break
    print(f"{Path(corpus).name} {idea.name}: {effect}", flush=True)


def sweep(idea: Idea, corpus: str, workers: int) -> None:
    """Print the dev losses of an idea's learning rates, one seed each."""
    field, values = idea.sweep.removesuffix(".").split(" of ")
    command = [sys.executable, "-m", "hectogpt", "compare", f"{idea.path}@{BASE}", "--corpus", corpus]
    command += f"--seeds 1 --first-seed {atlas.SWEEP_SEED} --threads 1 --workers {workers} --out {atlas.SWEEPS}".split()
    subprocess.run([*command, "--sweep", f"{field}={values.replace(' ', '')}"], cwd=ROOT, check=True)


def time_steps(idea: Idea, corpus: str) -> None:
    """Append the time of an idea's steps, divided by the time of the base's, to atlas.SECONDS."""
    text, threads = open_corpus(corpus), torch.get_num_threads()
    old, new = (Session.open(replace(find_run(path), threads=threads), text) for path in (BASE, chain([idea.path])))
    laps = [[take_step(session, number) for session in (old, new)] for number in TIMED][1:]
    ratio = float(trim_mean([after / before for before, after in laps], 0.1))  # bursts of other work do not count
    found = {"idea": idea.name, "files": sorted(atlas.files_of(idea)), "corpus": text.name, "ratio": round(ratio, 3)}
    found |= {"machine": machine(), "threads": threads, "commit": process.revision(ROOT / "hectogpt").commit}
    append_line(ROOT / atlas.SECONDS, json.dumps(found))
    print(f"{idea.name}: {ratio:.3f}", flush=True)


def chain(paths: Sequence[str]) -> str:
    """The name of ideas applied to the base, the last one first."""
    return "@".join([*paths, BASE])


def fit(paths: Sequence[str]) -> bool:
    """True if a run can have all of these ideas, and each of them changes it."""
    try:
        whole = find_run(chain(paths))
        return all(changed(whole, find_run(chain([other for other in paths if other != one]))) for one in paths)
    except UserError:
        return False


def figure_arms(action: str, rows: Sequence[Row]) -> list[list[str]]:
    """The arms of a figure's comparisons: the largest effects, and the ladder; or the largest gain of each kind."""
    if action == "half-life":
        largest = sorted((row for row in rows if row.gain), key=lambda row: -abs(row.gain or 0))[:LARGEST]
        return [[BASE, *(row.idea.path for row in largest)], ladder_names()]
    chosen: dict[str, str] = {}
    gains = (row for row in rows if row.gain and row.gain > 0 and (row.quiet or 0) < SLOW)
    for idea in (row.idea for row in gains if len(chosen) < LARGEST):
        chosen |= {idea.kind: idea.path} if idea.kind not in chosen and fit([*chosen.values(), idea.path]) else {}
    if len(chosen) < 3:
        sys.exit("Fewer than three ideas with a gain fit together. Measure more: python -m tools.research.atlas NAME")
    paths = list(chosen.values())
    return [[BASE, chain(paths), *(chain([other for other in paths if other != one]) for one in paths)]]


def main() -> None:
    """Run the trials that are missing, and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"ideas (default: all), after an optional {', '.join(ACTIONS)}")
    parser.add_argument("--corpora", nargs="+", default=list(FIRST_SEEDS), help="names or folders of both texts")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    action = given.names[0] if given.names and given.names[0] in ACTIONS else ""
    names = given.names[1:] if action else given.names
    if unknown := set(names) - {idea.name for idea in ideas()}:
        parser.error(f"no file of docs/literature/*/ with a claim has the name {', '.join(sorted(unknown))}")
    if action in ("half-life", "interactions"):
        for arms in figure_arms(action, atlas.read_rows()[1]):
            for corpus in given.corpora:
                for steps in HORIZONS if action == "half-life" else [STEPS]:
                    print(compare(arms, corpus, FEWEST, given.workers, FRESH * (action == "interactions"), steps=steps))
    for idea in ideas(names) if action in ("", "sweep", "seconds") else []:
        for corpus in given.corpora:
            if not action:
                run(idea, corpus, given.workers)
            elif action == "seconds":
                time_steps(idea, corpus)
            elif idea.sweep:
                sweep(idea, corpus, given.workers)
    subprocess.run([sys.executable, "-m", "tools.report.atlas"], cwd=ROOT, check=True)  # loads all ideas first


if __name__ == "__main__":
    main()
