"""Two at once: runs, resumed runs and corpora that are started together, by two processes and by four.

Nothing is shared and nothing is lost: each run has a folder of its own or is refused, and its numbers are those that it
has alone.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import forks
import runs
from forks import Line
from runs import Undisturbed

from hectogpt import errors
from hectogpt.data.corpus import open_corpus
from hectogpt.run_records import CHECKPOINTS, RUN
from hectogpt.training.run import Run
from hectogpt.training.run_folder import read_run

APART = 0.2  # seconds between the first start and the last: as long as a small run takes to build
REFUSED = (errors.LOCKED, errors.USAGE)  # another process has it, or it holds a run


def together(works: Sequence[Callable[[], Any]], chance: random.Random) -> list[forks.Ended]:
    """Do all this in processes that start within APART seconds."""

    def late(work: Callable[[], Any], delay: float) -> Any:
        time.sleep(delay)
        return work()

    delays = [chance.uniform(0, APART) for _ in works]
    children = [forks.Child(lambda w=work, d=delay: late(w, d)) for work, delay in zip(works, delays, strict=True)]
    return [child.wait() for child in children]


class Started:
    """Runs of a few steps with several seeds, what each of them leaves when it is alone, and ways to start several."""

    def __init__(self, case: Run, where: Path) -> None:
        self.cases = [replace(case, steps=5, seed=seed) for seed in range(4)]
        self.alone = [Undisturbed(one, where, runs.train_unscored) for one in self.cases]

    def differs(self, folder: Path) -> list[str]:
        """What is not in this folder as the run of its seed leaves it when it is alone."""
        seed = read_run(folder).seed
        found, expected = runs.signature(folder), self.alone[seed].signature
        for row in found["metrics"]:
            row["run"] = "run"
        return [f"{folder.name}, seed {seed}: {name} differs" for name in expected if found[name] != expected[name]]

    def with_one_name(self, base: Path, n: int, chance: random.Random) -> list[str]:
        """Runs that want runs/run: each gets a folder."""

        def train(case: Run) -> None:
            os.chdir(base)
            runs.train_unscored(case, None)

        ended = together([partial(train, case) for case in self.cases[:n]], chance)
        faults = [f"ended with {one.code}: {one.said[-1000:]}" for one in ended if one.code]
        folders = [path.parent for path in base.glob(f"runs/*/{RUN}")]
        faults += [] if len(folders) == n else [f"{len(folders)} folders for {n} runs"]
        return faults + [fault for folder in folders for fault in self.differs(folder)]

    def with_one_folder(self, base: Path, n: int, chance: random.Random) -> list[str]:
        """Runs that want one folder: one gets it, the others are refused."""
        folder = base / "run"
        works = [partial(runs.train_unscored, case, folder, anew=True) for case in self.cases[:n]]
        ended = together(works, chance)
        codes = sorted(one.code for one in ended)
        faults = [] if codes[0] == 0 and all(c in REFUSED for c in codes[1:]) else [f"ended with {codes}"]
        return faults + self.differs(folder)

    def resumed(self, base: Path, n: int, chance: random.Random) -> list[str]:
        """Processes that go on with the same killed run: it is as if one had."""
        folder, case = base / "run", self.cases[0]
        while runs.newest_step(folder) == 0:  # killed too early
            shutil.rmtree(folder, ignore_errors=True)
            child = forks.Child(lambda: runs.train_unscored(case, folder))
            while not list((folder / CHECKPOINTS).glob("step-*")) and not (folder / "model.safetensors").exists():
                time.sleep(0.002)
            child.wait(kill_after=0)
        ended = together([lambda: runs.train_unscored(case, folder)] * n, chance)
        codes = sorted(one.code for one in ended)
        faults = [] if codes[0] == 0 and set(codes) <= {0, errors.LOCKED} else [f"ended with {codes}: {ended[0].said}"]
        held = sorted(one.value for one in ended if one.value)
        if any(earlier[1] > later[0] for earlier, later in itertools.pairwise(held)):
            faults.append("two processes were in the folder at once")
        return faults + self.differs(folder)

    def corpora(self, base: Path, n: int, chance: random.Random) -> list[str]:
        """Processes that open one text, which nobody has tokenised yet: all read the same, and it is sound."""
        source, cache = str(base / "text.txt"), base / "cache"
        Path(source).write_text("\n\n".join(f"Passage {number} of the text, and no other." for number in range(3000)))
        ended = together([lambda: open_corpus(source, cache=cache, progress=False).sha256] * n, chance)
        faults = [f"ended with {one.code}: {one.said[-1000:]}" for one in ended if one.code]
        faults += ["the tokens differ"] if any(one.value != ended[0].value for one in ended) else []
        left = [path.name for path in cache.glob(".*") if not path.name.endswith(".lock")]
        open_corpus(source, cache=cache)  # compares the hashes
        return faults + ([f"left behind: {left}"] if left else [])


WAYS = (Started.with_one_name, Started.with_one_folder, Started.resumed, Started.corpora)


def starts(case: Run, where: Path, count: int, ways: Sequence[Callable[..., list[str]]] = WAYS) -> Line:
    """The line of so many starts, of two and of four processes in turn."""
    started = Started(case, where)

    def start(number: int) -> list[str]:
        way, n = ways[number % len(ways)], 2 if number // len(ways) % 2 == 0 else 4
        base = Path(tempfile.mkdtemp(dir=where))
        faults = [f"{way.__name__} x {n}: {fault}" for fault in way(started, base, n, random.Random(number))]
        shutil.rmtree(base)
        return faults

    return forks.over("two at once", start, range(count))


def check(quick: bool) -> list[Line]:
    """The line of starts. quick: fewer of them."""
    with runs.place(warm=("plain",)) as (where, cases):
        return [starts(cases["plain"], where, 8 if quick else 50)]
