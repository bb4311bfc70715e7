"""Seconds that a hundred steps of each recipe take on this machine, counted from a few of its steps.

A recipe is built and takes its first step; then a few steps are timed, and the rest are counted at their median. A step
of SOAP that updates its eigenbases takes longer than the others, so the two kinds are timed and counted separately. The
report draws loss against these seconds.

With their optimizers' state, thirty models do not fit into memory, so the recipes follow each other, each in its own
process. Each takes turns with a small one, PACE, and its seconds are scaled to the median pace of the pass.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.race import Lap, Race, Row
from bench.record import ROOT
from hectogpt.data import Corpus, load_tokenizer, open_corpus
from hectogpt.data.corpus import cache_folder
from hectogpt.data.sources import find_source
from hectogpt.lab import recipes
from hectogpt.lab.ladder import LADDER
from hectogpt.lab.record import read_records
from hectogpt.training import loop, precision, setup
from hectogpt.training.optim import SOAPMuon
from hectogpt.training.run import Run
from hectogpt.training.session import Session
from results import recipes as of_records
from tools.report.seconds import QUESTION

PACKAGES = ()
SETTINGS = ("tinystories", "sotu", "tiny")  # corpora
# Without tinystories in the cache, a text of its shapes replaces it, with as many token ids as a hundred batches have.
STAND_IN_IDS = 5_900
KINDS = ("slow", "usual")  # of steps
TIMED = 3  # steps of each kind
PACE = "muon"
RUNS = {name: recipes.recipe(name) for name in recipes.RECIPES}
RUNS |= {f.__name__: recipes.compound([f], f.__name__) for f in of_records.RECIPES}


def names(corpus: str) -> list[str]:
    """The recipes to time on a corpus: the ladder, the default, and those that have records there."""
    records = read_records(ROOT / "results" / "ladder.jsonl")
    recorded = {record.recipe for record in records if record.corpus == corpus and not record.overrides}
    wanted = {"baseline", recipes.DEFAULT, *(rung.__name__ for rung in LADDER), *recorded}
    return [name for name in RUNS if name in wanted]


def read_text(name: str) -> tuple[Corpus, str]:
    """The corpus, and what it is: its name, or "stand-in" for a text of its shapes. Nothing is downloaded."""
    if name == "tinystories" and not cache_folder(find_source(name)).exists():
        return make_stand_in(name), "stand-in"
    return open_corpus(name), name


def make_stand_in(name: str) -> Corpus:
    """A text of 900,000 tokens with STAND_IN_IDS ids, whose frequencies fall with their ranks as those of words do."""
    draw, tokenizer = np.random.default_rng(0), load_tokenizer()
    ids = draw.permutation(tokenizer.n_vocab - 1)[:STAND_IN_IDS].astype(np.uint16)
    weights = 1 / (np.arange(STAND_IN_IDS) + 3.0)
    train = ids[draw.choice(STAND_IN_IDS, 900_000, p=weights / weights.sum())]
    train[:STAND_IN_IDS] = ids
    splits = dict.fromkeys(("train", "dev", "test"), train)
    return Corpus(name, splits, dict.fromkeys(splits, ""), dict.fromkeys(splits, 1), tokenizer, Path())


def kinds_of(run: Run) -> Callable[[int], str]:
    """0-based step -> its kind, "slow" or "usual"."""
    every = run.optim.every if isinstance(run.optim, SOAPMuon) else 0
    return lambda step: "slow" if every and (step < 20 or step % every == 0) else "usual"


def take_step(session: Session, number: int) -> float:
    """Take one step as if `number` steps were done. Returns its seconds."""
    run, batches = session.run, setup.make_batches(session.run, session.corpus)
    gradients = loop.Gradients(run, session.model.train(), batches, session.machine)
    session.done = [loop.Step(0, 0, 0.0, 0.0, 0.0, 0.0, 0)] * (number + 1)
    precision.keep_freed_memory()  # as a session does
    begun = time.perf_counter()
    loop.update(gradients, session.optimizer, number)
    session._after_step()
    return time.perf_counter() - begun


def time_recipe(run: Run, corpus: Corpus) -> Row:
    """Seconds of all steps with building, of a step of PACE beside them, of the first, and of the others by kind."""
    kind_of, session = kinds_of(run), Session.open(run, corpus)
    pace = Session.open(replace(RUNS[PACE], threads=run.threads), corpus)
    count = Counter(kind_of(step) for step in range(1, run.steps))
    first, _ = take_step(session, 0), take_step(pace, 0)
    median, paces = {}, []
    for kind in sorted(count):
        steps = itertools.islice((step for step in range(1, run.steps) if kind_of(step) == kind), TIMED)
        laps = [(take_step(pace, step), take_step(session, step)) for step in steps]
        median[kind] = statistics.median(lap for _, lap in laps)
        paces += [lap for lap, _ in laps]
    seconds = session.setup_seconds + first + sum(count[kind] * median[kind] for kind in count)
    return {
        "rounds": TIMED,
        "seconds": seconds,
        "pace_seconds": round(statistics.median(paces), 3),
        "first_step_seconds": round(first, 3),
        **{f"{kind}_step_seconds": round(median[kind], 3) for kind in median},
    }


def prepare(setting: str, contender: str, folder: str) -> dict[str, Lap]:
    """One recipe; "tiny" is one on short rows of the stand-in."""
    run = replace(RUNS[contender], threads=torch.get_num_threads())
    if setting == "tiny":
        run = replace(run, steps=25, data=replace(run.data, batch_size=1, seq_len=16))
    corpus, text = (make_stand_in("tiny"), "stand-in") if setting == "tiny" else read_text(setting)
    return {"run": lambda: {"text": text, **time_recipe(run, corpus)}}


def measure(setting: str, race: Race) -> Iterator[tuple[str, list[Row]]]:
    """A row for each recipe that could be timed."""
    rows: list[Row] = []
    for name in ("baseline", recipes.DEFAULT) if setting == "tiny" else names(setting):
        (laps,) = replace(race, rounds=0).run(__name__, setting, [name], ["run"])  # the warm-up is all of it
        if name not in laps.lost:
            rows.append({"contender": name, "setting": setting, **laps.facts[name]})
            print(f"{name}: {float(rows[-1]['seconds']):.1f} s", flush=True)
    usual = statistics.median([float(row["pace_seconds"]) for row in rows] or [1.0])
    for row in rows:
        row["seconds"] = round(float(row["seconds"]) * usual / float(row["pace_seconds"]), 1)
    yield QUESTION, rows
