"""Recipes over paired seeds: what is to be run, what is missing, and what the records say.

Every arm gets the same seeds; a trial once recorded is not run again; a seed that failed counts as a uniform guess.
Refuses nothing a track forbids, but marks it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from hectogpt.data import Corpus, tokens_read
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.lab.anchors import Anchors, anchors
from hectogpt.lab.statistics import Paired, Summary, paired, selection_bias, summarize
from hectogpt.lab.trials import Row, append_row, identity, read_rows, run_trial
from hectogpt.train import machine
from hectogpt.train.run import Run
from hectogpt.values import dump, load

Track = Literal["closed", "closed+statistics", "open-cpu", "open-gpu"]
TRACKS: tuple[str, ...] = get_args(Track)
STEPS, TOKENS, PARAMETERS, SECONDS, CORES = 100, 819_200, 60_000_000, 600, 2


@dataclass(frozen=True)
class Arm:
    """One thing to compare: a run (whose seed is set per trial) and what was overridden in its recipe."""

    label: str
    run: Run
    overrides: dict[str, Any]


def plan(
    names: Sequence[str], without: Sequence[str] = (), sweep: Sequence[str] = (), steps: int | None = None
) -> list[Arm]:
    """The arms: each named recipe, then the top recipe without each named part; each with every swept value.

    without: names of ladder steps, or "all". sweep: "optim.lr=1e-3,3e-3"; several sweeps make a grid.
    Raises UserError for an unknown recipe, field or value.
    """
    if without and not names:
        names = (recipes.DEFAULT,)
    parts = [step.__name__ for step in recipes.LADDER] if list(without) == ["all"] else list(without)
    bases = [recipes.recipe(name) for name in names]
    bases += [replace(recipes.without(part), recipe=f"without-{part}") for part in parts]
    if not bases:
        raise UserError("no recipe named", fix=f"hectogpt compare baseline {recipes.DEFAULT}")
    grid = list(product(*[_values(text) for text in sweep]))
    arms: dict[str, Arm] = {}
    for base in bases:
        for point in grid:
            overrides = dict(point)
            if steps is not None and steps != base.steps:
                overrides["steps"] = steps
            run = override(base, overrides)
            label = " ".join([base.recipe, *(f"{field}={json.dumps(value)}" for field, value in overrides.items())])
            arms[label] = Arm(label, run, overrides)
    return list(arms.values())


def _values(text: str) -> list[tuple[str, Any]]:
    """ "optim.lr=1e-3,3e-3" -> [(optim.lr, .001), (optim.lr, .003)]."""
    field, equals, values = text.partition("=")
    if not equals or not values:
        raise UserError(f"--sweep {text}", why="it has the form FIELD=VALUE,VALUE", fix="--sweep optim.lr=1e-3,3e-3")
    return [(field, _parse(value)) for value in values.split(",")]


def _parse(text: str) -> Any:
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    for read in (json.loads, float):  # float for .5, which JSON does not have
        with suppress(ValueError):
            return read(text)
    return text


def override(run: Run, changes: dict[str, Any]) -> Run:
    """A run with some dotted fields replaced. Raises UserError naming a field that does not exist or does not fit."""
    data = dump(run)
    for field, value in changes.items():
        *path, last = field.split(".")
        inner = data
        for name in path:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            known = ", ".join(name for name in inner if name != "type") if isinstance(inner, dict) else ""
            where = ".".join(path) or "the run"
            raise UserError(
                f"{run.recipe} has no field {field!r}",
                why=f"{where} has {known}" if known else f"{where} is not a group of fields in this recipe",
            )
        inner[last] = value
    return load(Run, data)


def broken_rules(track: Track, run: Run, corpus: Corpus, row: Row) -> list[str]:
    """Which of the track's rules a trial breaks, in words; [] if none. row: `params`, `seconds` and `machine`."""
    broken = []
    if run.steps != STEPS:
        broken.append(f"{run.steps} steps, not {STEPS}")
    chosen = row.get("machine") or {}
    on_gpu = str(chosen.get("kind", "cpu")) == "cuda"
    if track in ("closed", "closed+statistics"):
        tokens = run.steps * run.data.batch_size * run.data.window
        if tokens > TOKENS:
            broken.append(f"{tokens:,} training tokens, at most {TOKENS:,}")
        if run.steps * run.data.batch_size > len(corpus.train) // run.data.window:
            broken.append("training text read more than once")
        if (row.get("params") or 0) > PARAMETERS:
            broken.append(f"{row['params']:,} parameters, at most {PARAMETERS:,}")
    if track == "closed" and run.statistics is not None:
        broken.append("a start from counts of the training text")
    if track != "open-gpu":
        if (row.get("seconds") or 0) > SECONDS:
            broken.append(f"{row['seconds']:.0f} s, at most {SECONDS}")
        if on_gpu:
            broken.append("trained on a GPU")
        if (chosen.get("threads") or 0) > CORES:
            broken.append(f"{chosen['threads']} threads, at most {CORES}")
    return broken


@dataclass(frozen=True)
class Trial:
    """An arm at a seed."""

    arm: Arm
    seed: int


class Comparison:
    """Arms x seeds on one corpus and track, with the records that exist."""

    def __init__(
        self,
        arms: Sequence[Arm],
        seeds: Sequence[int],
        corpus: Corpus,
        track: Track = "closed",
        test: bool = False,
        threads: int = 0,
        out: Path = Path("runs/compare.jsonl"),
    ) -> None:
        if not seeds:
            raise UserError("--seeds 0", why="a comparison needs at least one seed")
        self.seeds, self.corpus, self.track, self.test, self.out = list(seeds), corpus, track, test, out
        name = short_name(corpus.name)  # a recorded run must mean the same on another machine
        cores = threads or (min(CORES, machine.physical_cores()) if track != "open-gpu" else 0)
        self.arms = [replace(arm, run=replace(arm.run, corpus=name, threads=cores)) for arm in arms]
        self._anchors: dict[tuple[int, ...], Anchors] = {}
        self.rows: dict[tuple[str, int], Row] = {}

    def trials(self) -> list[Trial]:
        """Seed by seed, so that what an interruption leaves is paired."""
        return [Trial(arm, seed) for seed in self.seeds for arm in self.arms]

    def missing(self) -> list[Trial]:
        """Read the records and return the trials that have none (with --test: none with a test score)."""
        known: dict[str, Row] = {}
        for row in read_rows(self.out):
            if "corpus_sha256" in row:
                key = identity(row["run"], row["corpus_sha256"], row["track"], row["seed"])
                if key not in known or known[key].get("test_loss") is None:
                    known[key] = row
        self.rows = {}
        for trial in self.trials():
            key = identity(dump(trial.arm.run), self.corpus.sha256, self.track, trial.seed)
            if key in known and (known[key].get("test_loss") is not None or not self.test):
                self.rows[trial.arm.label, trial.seed] = known[key]
        return [t for t in self.trials() if (t.arm.label, t.seed) not in self.rows]

    def perform(self, trial: Trial, on_step: Callable[[int, float], None] = lambda step, loss: None) -> Row:
        """Run one trial and record it."""
        run = replace(trial.arm.run, seed=trial.seed)
        begun = time.perf_counter()
        result = run_trial(run, self.corpus, self.test, on_step)
        curves = {name: result.pop(name) for name in ("losses", "grad_norms")}
        row = {
            "corpus": run.corpus,
            "corpus_sha256": self.corpus.sha256,
            "track": self.track,
            "recipe": run.recipe,
            "arm": trial.arm.label,
            "modified": bool(trial.arm.overrides),
            "overrides": trial.arm.overrides,
            "seed": run.seed,
            "steps": run.steps,
            "train_tokens": run.steps * run.data.batch_size * run.data.window,
            **result,
            **self._anchor_fields(run),
            "rules_broken": broken_rules(self.track, run, self.corpus, result),
            "wall_seconds": round(time.perf_counter() - begun, 2),
            "run": dump(run),
            **curves,
        }
        append_row(self.out, row)
        self.rows[trial.arm.label, trial.seed] = row
        return row

    def _anchor_fields(self, run: Run) -> Row:
        split = "test" if self.test else "dev"
        key = (run.data.window, run.data.batch_size, run.seed, run.steps, self.test)
        if key not in self._anchors:
            windows = tokens_read(self.corpus.train, run.data.window, run.data.batch_size, run.seed, run.steps)
            self._anchors[key] = anchors(windows, getattr(self.corpus, split), self.corpus.n_vocab)
        levels = asdict(self._anchors[key])
        return {"anchor_split": split, **{f"anchor_{name}": level for name, level in levels.items()}}

    @property
    def metric(self) -> str:
        """The loss compared: test_loss if asked for, else dev_loss."""
        return "test_loss" if self.test else "dev_loss"

    def losses(self, arm: Arm, metric: str) -> dict[int, float]:
        """Seed -> loss of the trials recorded so far."""
        found = {seed: self.rows[arm.label, seed].get(metric) for seed in self.seeds if (arm.label, seed) in self.rows}
        return {seed: float(loss) for seed, loss in found.items() if loss is not None}

    def results(self) -> list[Result]:
        """One Result an arm, for the arms with a record, in order."""
        found: list[Result] = []
        for arm in self.arms:
            losses = self.losses(arm, self.metric)
            if losses:
                rows = [self.rows[arm.label, seed] for seed in losses]
                dev, first, previous = self.losses(arm, "dev_loss"), None, None
                if found:
                    first = paired(losses, self.losses(found[0].arm, self.metric))
                    previous = paired(losses, self.losses(found[-1].arm, self.metric))
                test = summarize(list(losses.values())) if self.test else None
                found.append(Result(arm, summarize(list(dev.values())), test, first, previous, rows))
        return found


@dataclass(frozen=True)
class Result:
    """An arm's losses over its seeds, and its paired differences to the first arm and to the one before."""

    arm: Arm
    dev: Summary
    test: Summary | None
    to_first: Paired | None
    to_previous: Paired | None
    rows: list[Row]

    def mean(self, field: str) -> float | None:
        """Mean of a record's number over the trials that have it."""
        values = [row[field] for row in self.rows if row.get(field) is not None]
        return sum(values) / len(values) if values else None

    def as_json(self) -> Row:
        """The result without the records."""
        plain = {name: asdict(value) if (value := getattr(self, name)) else None for name in _PLAIN}
        seeds = {row["seed"]: row.get("status", "ok") for row in self.rows}
        return {"arm": self.arm.label, "modified": bool(self.arm.overrides), "seeds": seeds, **plain}


_PLAIN = ("dev", "test", "to_first", "to_previous")


def best_of(results: Sequence[Result]) -> tuple[Result, float]:
    """The arm with the lowest mean loss and how much of its lead is expected to be luck (pooled SD over seeds)."""
    best = min(results, key=lambda result: (result.test or result.dev).mean)
    spreads = [s.sd for s in ((r.test or r.dev) for r in results) if s.sd is not None]
    n = (best.test or best.dev).n
    sd = (sum(x * x for x in spreads) / len(spreads)) ** 0.5 if spreads else 0.0
    return best, selection_bias(sd / n**0.5, len(results))


def short_name(corpus: str) -> str:
    """A corpus's name without the path to it: the folder's for token files, the file's for text."""
    if corpus.startswith("hf:"):
        return corpus
    path = Path(corpus)
    return (path.parent.resolve().name if path.name == "train.bin" else path.resolve().name) or corpus


def failures(rows: Iterable[Row]) -> list[str]:
    """A line on each way in which trials failed or broke their track's rules, with the seeds."""
    seeds: dict[str, list[int]] = {}
    for row in rows:
        arm = row.get("arm", row["recipe"])
        if row.get("status", "ok") != "ok":
            line = f"{arm}: {row['status']}, counted as a uniform guess: {row.get('error')}"
            seeds.setdefault(line, []).append(row["seed"])
        if row.get("rules_broken"):
            line = f"{arm}: against the rules of {row['track']}: {'; '.join(row['rules_broken'])}"
            seeds.setdefault(line, []).append(row["seed"])
    return [f"{line} (seed {', '.join(map(str, sorted(which)))})" for line, which in seeds.items()]
