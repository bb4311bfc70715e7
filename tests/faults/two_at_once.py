"""Two at once: runs, resumed runs, comparisons and corpora that are started together, by two processes and by four.

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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comparing
import forks
import killed
import small_runs
from promises import Line
from small_runs import Case

from hectogpt import errors
from hectogpt.data import corpus as corpora
from hectogpt.progress import Progress
from hectogpt.run_records import CHECKPOINTS, RUN
from hectogpt.training import task as tasks
from hectogpt.training.full_run import train_in_folder
from hectogpt.training.run_folder import read_run

STARTS, QUICK_STARTS = 50, 8
APART = 0.2  # seconds between the first start and the last: as long as a small run takes to build
STEPS = 5
KINDS = ("one name", "one folder", "resumed", "compared", "corpora")
REFUSED = (errors.LOCKED, errors.USAGE)  # another process has it, or it holds a run


def together(works: list[Callable[[], Any]], chance: random.Random) -> list[forks.Ended]:
    """Do all this in processes that start within APART seconds."""
    delays = [chance.uniform(0, APART) for _ in works]

    def late(work: Callable[[], Any], delay: float) -> Any:
        time.sleep(delay)
        return work()

    children = [forks.Child(lambda w=work, d=delay: late(w, d)) for work, delay in zip(works, delays, strict=True)]
    return [child.wait() for child in children]


class Runs:
    """Runs of a few steps with several seeds, and what each of them leaves when it is alone."""

    def __init__(self, case: Case, where: Path) -> None:
        self.where = where
        self.cases = [case.with_steps(STEPS).with_seed(seed) for seed in range(4)]
        out = where / "compared.jsonl"
        forks.value_of(lambda: comparing.perform({"plain": self.cases[0]}, out, where / "side"))
        self.compared_alone = comparing.records_of(out)
        self.alone = [killed.reference(one, where / f"alone {n}", begin) for n, one in enumerate(self.cases)]

    def differs(self, folder: Path) -> list[str]:
        """What is not in this folder as the run of its seed leaves it when it is alone."""
        seed = read_run(folder).seed
        found, expected = small_runs.signature(folder), self.alone[seed].signature
        for rows in (found["metrics"], *([] if folder.name == "run" else [expected["metrics"]])):
            for row in rows:
                row["run"] = "run"
        return [f"{folder.name}, seed {seed}: {name} differs" for name in small_runs.differences(found, expected)]

    def with_one_name(self, n: int, chance: random.Random) -> list[str]:
        """Runs that want runs/run: each gets a folder."""
        base = Path(tempfile.mkdtemp(dir=self.where))
        ended = together([lambda c=case: begin(c, None, base) for case in self.cases[:n]], chance)
        faults = [f"ended with {one.code}: {one.said[-1000:]}" for one in ended if one.code]
        folders = [path.parent for path in base.glob(f"runs/*/{RUN}")]
        if len(folders) != n:
            faults.append(f"{len(folders)} folders for {n} runs")
        faults += [fault for folder in folders for fault in self.differs(folder)]
        shutil.rmtree(base)
        return faults

    def with_one_folder(self, n: int, chance: random.Random) -> list[str]:
        """Runs that want one folder: one gets it, the others are refused."""
        base = Path(tempfile.mkdtemp(dir=self.where))
        ended = together([lambda c=case: begin(c, base / "run") for case in self.cases[:n]], chance)
        codes = sorted(one.code for one in ended)
        faults = [] if codes[0] == 0 and all(c in REFUSED for c in codes[1:]) else [f"ended with {codes}"]
        faults += self.differs(base / "run")
        shutil.rmtree(base)
        return faults

    def resumed(self, n: int, chance: random.Random) -> list[str]:
        """Processes that go on with the same killed run: it is as if one had."""
        base = Path(tempfile.mkdtemp(dir=self.where))
        folder, case = base / "run", self.cases[0]
        while small_runs.newest_step(folder) == 0:  # killed too early
            shutil.rmtree(folder, ignore_errors=True)
            child = forks.Child(lambda: begin(case, folder))
            while not list((folder / CHECKPOINTS).glob("step-*")) and not (folder / "model.safetensors").exists():
                time.sleep(0.002)
            child.wait(kill_after=0)
        ended = together([lambda: go_on(case, folder)] * n, chance)
        codes = sorted(one.code for one in ended)
        faults = [] if codes[0] == 0 and set(codes) <= {0, errors.LOCKED} else [f"ended with {codes}: {ended[0].said}"]
        held = sorted(one.value for one in ended if one.value)
        if any(earlier[1] > later[0] for earlier, later in itertools.pairwise(held)):
            faults.append("two processes were in the folder at once")
        faults += self.differs(folder)
        shutil.rmtree(base)
        return faults

    def compared(self, n: int, chance: random.Random) -> list[str]:
        """Comparisons with one file of records: each trial is in it, and those that were done twice are equal."""
        base = Path(tempfile.mkdtemp(dir=self.where))
        out, cases = base / "a.jsonl", {"plain": self.cases[0]}
        ended = together([lambda: comparing.perform(cases, out, base / "side")] * n, chance)
        faults = [f"ended with {one.code}: {one.said[-1000:]}" for one in ended if one.code]
        found = comparing.records_of(out)
        faults += ["a record is lost" for record in self.compared_alone if record not in found]
        faults += ["a record differs" for record in found if record not in self.compared_alone]
        shutil.rmtree(base)
        return faults


def begin(case: Case, out: Path | None, inside: Path | None = None) -> None:
    """Begin a run in `out`, or in a numbered folder below `inside`/runs, and train it to the end."""
    if inside is not None:
        os.chdir(inside)
    progress = Progress(quiet=True)
    task = small_runs.task_of(case, None)
    folder, session = tasks.begin(replace(task, out=out, resume=None), progress)
    with folder:
        train_in_folder(session, folder, progress, {}, task)


def go_on(case: Case, folder: Path) -> tuple[float, float]:
    """Go on with the run in a folder; from when to when it was held."""
    task = small_runs.task_of(case, folder)
    taken, session = tasks.begin(task, Progress(quiet=True))
    begun = time.monotonic()
    with taken:
        train_in_folder(session, taken, Progress(quiet=True), {}, task)
        return begun, time.monotonic()


def build_corpora(where: Path, n: int, chance: random.Random) -> list[str]:
    """Processes that open one text, which nobody has tokenised yet: all read the same, and it is sound."""
    base = Path(tempfile.mkdtemp(dir=where))
    source, cache = base / "text.txt", base / "cache"
    source.write_text("\n\n".join(f"Passage {number} of the text, and no other." for number in range(3000)))
    ended = together([lambda: corpora.open_corpus(str(source), cache=cache, progress=False).sha256] * n, chance)
    faults = [f"ended with {one.code}: {one.said[-1000:]}" for one in ended if one.code]
    faults += ["the tokens differ"] if any(one.value != ended[0].value for one in ended) else []
    faults += corpora.CorpusCache(str(source), cache=cache).verify()
    left = [path.name for path in cache.glob(".*") if not path.name.endswith(".lock")]
    shutil.rmtree(base)
    return faults + ([f"left behind: {left}"] if left else [])


def starts(runs: Runs, where: Path, count: int, kinds: str = ",".join(KINDS)) -> Line:
    """The line of so many starts, of two and of four processes in turn."""
    ways = {
        "one name": runs.with_one_name,
        "one folder": runs.with_one_folder,
        "resumed": runs.resumed,
        "compared": runs.compared,
        "corpora": lambda n, chance: build_corpora(where, n, chance),
    }
    names = kinds.split(",")

    def start(number: int) -> list[str]:
        name, n = names[number % len(names)], 2 if number // len(names) % 2 == 0 else 4
        return [f"{name} x {n}: {fault}" for fault in ways[name](n, random.Random(number))]

    return forks.over("two at once", start, range(count), "nothing shared, nothing lost")


def check(quick: bool) -> list[Line]:
    """All lines. quick: fewer starts."""
    with small_runs.place(warm=("plain",)) as (where, cases):
        return [starts(Runs(cases["plain"], where), where, QUICK_STARTS if quick else STARTS)]
