"""`python -m tools.research.atlas [NAME ...]`: the trials of docs/literature/ that results/atlas.jsonl lacks.

One rule for all ideas: the base is docs/literature/base.py; on each text an idea has five paired seeds, and more, up to
twelve, as long as its verdict is open and its effect is above 0.02. The trials of the base are shared. The test text is
scored once for each trial. An idea whose docstring has a line "Sweep:" gets its learning rate from one seed on dev
first: `python -m tools.research.atlas sweep NAME ...` prints the losses, and the best value goes into the idea's file.

Trials are those of `hectogpt compare`, so an interrupted run resumes. `--workers 2` runs two at a time, each with one
thread. One row by hand: `hectogpt compare docs/literature/base.py:base@half_minute docs/literature/KIND/NAME.py:NAME`.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hectogpt
from hectogpt.lab.losses import LossVerdict
from hectogpt.lab.verdict import ComparisonResult
from tools import ROOT

LITERATURE = ROOT / "docs" / "literature"
BASE = "docs/literature/base.py:base@half_minute"
RECORDS = "results/atlas.jsonl"
SWEEPS = "results/atlas_sweeps.jsonl"
FIRST_SEEDS = {"tinystories": 401, "sotu": 201}
SWEEP_SEED = 400  # of both texts
FEWEST, MOST = 5, 12  # seeds
WORTH_MORE = 0.02  # nats per token: a smaller effect gets no further seeds


@dataclass(frozen=True)
class Idea:
    """A file of docs/literature/, as its docstring tells it."""

    kind: str
    name: str
    what: str
    source: str
    claim: str
    expected: str
    sweep: str

    @property
    def path(self) -> str:
        """How `compare` calls it, from the root of the checkout."""
        return f"docs/literature/{self.kind}/{self.name}.py:{self.name}"


def ideas(names: Sequence[str] = ()) -> list[Idea]:
    """Ideas by kind and name: those that are named, or all that state a claim."""
    found = []
    for path in sorted(LITERATURE.glob("*/*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == path.stem)
        what, *rest = (ast.get_docstring(function) or "").split("\n\n")
        parts = dict(re.findall(r"^(Source|Claim|Expected|Sweep): (.*(?:\n(?!\w+: ).*)*)", "\n".join(rest), re.M))
        if "Claim" in parts and (not names or path.stem in names):
            lines = (" ".join(parts.get(name, "").split()) for name in ("Source", "Claim", "Expected", "Sweep"))
            found.append(Idea(path.parent.name, path.stem, " ".join(what.split()), *lines))
    return found


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
    command = [
        sys.executable,
        "-m",
        "hectogpt",
        "compare",
        idea.path + "@docs/literature/base.py:base@half_minute",
        "--corpus",
        corpus,
        "--threads",
        "1",
    ]
    command += ["--sweep", f"{field}={values.replace(' ', '')}", "--seeds", "1", "--first-seed", str(SWEEP_SEED)]
    subprocess.run([*command, "--workers", str(workers), "--out", SWEEPS], cwd=ROOT, check=True)


def main() -> None:
    """Run the trials that are missing, or the sweeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="ideas; none: all. `sweep` first: only their learning rates")
    parser.add_argument("--corpora", nargs="+", default=["tinystories", "sotu"], help="names or folders of both texts")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    sweeping = given.names[:1] == ["sweep"]
    for idea in ideas(given.names[sweeping:]):
        for corpus in given.corpora:
            if not sweeping:
                run(idea, corpus, given.workers)
            elif idea.sweep:
                sweep(idea, corpus, given.workers)


if __name__ == "__main__":
    main()
