"""A comparison: arms over the same seeds, which of their trials are missing, and what the recorded ones say.

A trial once recorded is not run again; one that diverged counts as a uniform guess, one that crashed does not count. A
trial that breaks the rules of its track is recorded with the rules that it broke.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hectogpt import hardware
from hectogpt.data import Corpus
from hectogpt.display import NGRAMS
from hectogpt.errors import UserError
from hectogpt.files import is_locked, lock
from hectogpt.lab.gains import gain_json
from hectogpt.lab.ideas import files_of
from hectogpt.lab.ngram import NgramLosses, NgramModels
from hectogpt.lab.plan import Arm
from hectogpt.lab.record import Record, RecordFile, append_record, trial_key
from hectogpt.lab.statistics import Paired, Summary, compare_pairs, selection_bias_of, summarize
from hectogpt.lab.tracks import Track, broken_rules
from hectogpt.lab.trial import run_trial
from hectogpt.serialization import dump
from hectogpt.training.run import Data, Run
from hectogpt.training.setup import training_tokens


@dataclass(frozen=True)
class Trial:
    """An arm at a seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> tuple[str, int]:
        """The arm's label and the seed, as `Comparison.records` has them."""
        return self.arm.label, self.seed


@dataclass(frozen=True)
class Result:
    """An arm's losses over its seeds, and its paired differences to the first arm and to the one before it."""

    arm: Arm
    dev: Summary
    test: Summary | None
    to_first: Paired | None
    to_previous: Paired | None
    records: list[Record]

    @property
    def compared(self) -> Summary:
        """The losses that are compared: test if it was asked for, else dev."""
        return self.test or self.dev

    def mean(self, name: str) -> float | None:
        """Mean of a record's number over the trials that have it."""
        values = [value for record in self.records if (value := getattr(record, name)) is not None]
        return sum(values) / len(values) if values else None

    @property
    def rules_broken(self) -> tuple[str, ...]:
        """The rules that any of the trials breaks, each once."""
        return tuple(dict.fromkeys(rule for record in self.records for rule in record.rules_broken))

    def as_json(self) -> dict[str, Any]:
        """The result without the records."""
        return {
            "arm": self.arm.label,
            "modified": bool(self.arm.overrides),
            "seeds": {record.seed: record.status for record in self.records},
            "dev": asdict(self.dev),
            "test": self.test and asdict(self.test),
            "to_first": self.to_first and gain_json(self.to_first),
            "to_previous": self.to_previous and gain_json(self.to_previous),
        }


class Comparison:
    """Arms x seeds on one corpus and track, and the records of their trials.

    out: the file of records. test: whether to score the test split too, and compare by it.
    records: (arm's label, seed) -> record, as `missing` and `perform` find them. failed: trials that crashed in
    `perform`.
    """

    def __init__(
        self, arms: Sequence[Arm], seeds: Sequence[int], corpus: Corpus, track: Track, out: Path, test: bool = False
    ) -> None:
        if not seeds:
            raise UserError("seeds = 0", why="a comparison needs at least one seed")
        self.arms, self.seeds, self.corpus, self.track = list(arms), list(seeds), corpus, track
        self.out, self.test = out, test
        self.records: dict[tuple[str, int], Record] = {}
        self.failed: list[Record] = []
        self._ngrams: dict[tuple[Data, int, int], NgramLosses] = {}
        self._file = RecordFile(out)
        self._known: dict[str, Record] = {}  # what the file of records had when it was last read
        self._crashes: Counter[str] = Counter()

    @property
    def split(self) -> str:
        """The split that is compared, "test" or "dev"."""
        return "test" if self.test else "dev"

    def trials(self) -> list[Trial]:
        """Seed by seed, so that what an interruption leaves is paired."""
        return [Trial(arm, seed) for seed in self.seeds for arm in self.arms]

    def missing(self) -> list[Trial]:
        """Read the records; the trials that have none that counts (if `test`: none with a test score)."""
        self.refresh()
        found = {trial.name: self.find(trial) for trial in self.trials()}
        self.records = {name: record for name, record in found.items() if record is not None}
        for trial in self.trials():
            if trial.name in self.records:
                self._tidy(trial)
        return [trial for trial in self.trials() if trial.name not in self.records]

    def _tidy(self, trial: Trial) -> None:
        """Remove what a process left that was killed after the trial's record and before its end."""
        scratch = self.scratch(self.run_of(trial))
        if scratch.exists() and not is_locked(scratch / ".lock"):
            _remove(scratch)

    def refresh(self) -> None:
        """Read what is new in the file of records."""
        self._known, self._crashes = {}, Counter()
        for key, record in self._file.read():
            self._crashes[key] += not record.counts
            if record.counts and (key not in self._known or self._known[key].test_loss is None):
                self._known[key] = record

    def find(self, trial: Trial) -> Record | None:
        """The trial's record among those that were read last; None if there is none that counts."""
        found = self._known.get(self._key(trial))
        return None if found is None or found.loss(self.split) is None else found

    def crashes(self, trial: Trial) -> int:
        """How often the trial has crashed, by the records that were read last."""
        return self._crashes[self._key(trial)]

    def _key(self, trial: Trial) -> str:
        return trial_key(dump(self.run_of(trial)), self.corpus.sha256, self.track.name, trial.seed)

    def perform(self, trial: Trial, on_step: Callable[[int, float], None] = lambda step, loss: None) -> Record:
        """Run one trial and append its record. Raises UserError (STORAGE)."""
        begun, run = time.perf_counter(), self.begin(trial)
        scratch = self.scratch(run)
        return self.add(
            trial, run, run_trial(run, self.corpus, self.splits, on_step, scratch, self.track.mixes_counts), begun
        )

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that a trial is scored on."""
        return ("dev", "test") if self.test else ("dev",)

    def begin(self, trial: Trial) -> Run:
        """The trial's run; its ideas are kept beside the records."""
        run = self.run_of(trial)
        for idea in files_of(run):
            idea.keep(self.out.parent / "ideas" / f"{idea.sha256}.py")
        return run

    def add(self, trial: Trial, run: Run, result: dict[str, Any], begun: float) -> Record:
        """Append the record of a trial that has ended. run: of `begin`. result: of `trial_process.ask`. begun: of
        time.perf_counter, when the trial began. Raises UserError (STORAGE)."""
        counted = self._ngram_fields(run) if result["status"] != "failed" else {}
        fields = result | counted
        fields |= {
            "corpus": run.corpus,
            "corpus_sha256": self.corpus.sha256,
            "track": self.track.name,
            "recipe": run.recipe,
            "arm": trial.arm.label,
            "modified": bool(trial.arm.overrides),
            "overrides": trial.arm.overrides,
            "seed": run.seed,
            "steps": run.steps,
            "train_tokens": run.steps * run.data.batch_size * run.data.seq_len,
            "run": dump(run),
            "wall_seconds": round(time.perf_counter() - begun, 2),
        }
        names = [field.name for field in dataclasses.fields(Record)]
        record = Record(**{name: fields[name] for name in names if name in fields})
        broken = broken_rules(self.track, run, self.corpus, record.params, record.seconds, record.machine)
        record = replace(record, rules_broken=broken)
        append_record(self.out, record)
        scratch = self.scratch(run)
        if record.counts or not any(scratch.glob("step-*")):
            _remove(scratch)
        if record.counts:
            self.records[trial.name] = record
        else:
            self.failed.append(record)
        return record

    def scratch(self, run: Run) -> Path:
        """Where a trial keeps its checkpoints until it is recorded."""
        key = trial_key(dump(run), self.corpus.sha256, self.track.name, run.seed)
        return self.out.with_name(f".{self.out.name}.trials") / key[:16]

    @contextmanager
    def claim(self, trial: Trial) -> Iterator[bool]:
        """Hold the right to run a trial; False if another process holds it. A holder that dies loses it.

        Where the file system has no locks everybody gets it, and a trial may be run twice, which harms nothing.
        """
        path = self._claim_path(trial)
        with ExitStack() as held:
            yield _take(path, held)
        with suppress(OSError):
            path.parent.rmdir()

    def is_claimed(self, trial: Trial) -> bool:
        """Whether a process is running the trial, as far as locks tell."""
        return is_locked(self._claim_path(trial))

    def _claim_path(self, trial: Trial) -> Path:
        return self.scratch(self.run_of(trial)).with_suffix(".claim")

    def run_of(self, trial: Trial) -> Run:
        """The trial's run: its seed, as many threads as the track allows unless the run says how many, and the corpus
        by a name that means the same on another machine."""
        run, cores = trial.arm.run, self.track.cores
        threads = run.threads or (0 if cores is None else min(cores, hardware.physical_cores()))
        return replace(run, seed=trial.seed, threads=threads, corpus=short_name(self.corpus.name))

    def _ngram_fields(self, run: Run) -> dict[str, Any]:
        reads = (run.data, run.seed, run.steps)
        if reads not in self._ngrams:
            tokens = training_tokens(run, self.corpus)
            self._ngrams[reads] = NgramModels(tokens, self.corpus.n_vocab).losses(self.corpus.tokens[self.split])
        levels = asdict(self._ngrams[reads])
        return {"ngram_split": self.split, **{f"ngram_{name}": level for name, level in levels.items()}}

    def losses(self, arm: Arm, split: str) -> dict[int, float]:
        """Seed -> held-out loss of the trials recorded so far."""
        found = {seed: self.records[arm.label, seed] for seed in self.seeds if (arm.label, seed) in self.records}
        return {seed: loss for seed, record in found.items() if (loss := record.loss(split)) is not None}

    def results(self) -> list[Result]:
        """One Result per arm that has a record, in order."""
        found: list[Result] = []
        for place, arm in enumerate(self.arms):
            losses = self.losses(arm, self.split)
            if not losses:
                continue
            to_first = to_previous = None
            if place:
                to_first = compare_pairs(losses, self.losses(self.arms[0], self.split))
                to_previous = compare_pairs(losses, self.losses(self.arms[place - 1], self.split))
            dev = summarize(list(self.losses(arm, "dev").values()))
            test = summarize(list(losses.values())) if self.test else None
            records = [self.records[arm.label, seed] for seed in losses]
            found.append(Result(arm, dev, test, to_first, to_previous, records))
        return found


def _remove(scratch: Path) -> None:
    """Remove the checkpoints of a trial that is recorded."""
    shutil.rmtree(scratch, ignore_errors=True)
    with suppress(OSError):  # others are still under way
        scratch.parent.rmdir()


def _take(path: Path, held: ExitStack) -> bool:
    """Lock a file for as long as `held` is; False if another process holds it. A tenth of a second is for one that
    only asks whether it is locked."""
    for _ in range(100):
        try:
            held.enter_context(lock(path, "running this trial", patience=0.1, remove=True))
        except FileNotFoundError:  # the holder before has taken the folder away, which was empty
            continue
        except UserError:
            return False
        except OSError:  # nothing can be written there: the record will tell
            break
        return True
    return True


def best_of(results: Sequence[Result]) -> tuple[Result, float]:
    """The arm with the lowest mean loss, and its selection bias: how much of its lead is expected to be luck."""
    summaries = [result.compared for result in results]
    best = min(results, key=lambda result: result.compared.mean)
    return best, selection_bias_of(summaries) or 0.0


def ngram_means(results: Sequence[Result]) -> dict[str, float]:
    """Mean over seeds of the first arm's n-gram baselines."""
    levels = {name: results[0].mean(f"ngram_{name}") for name in NGRAMS} if results else {}
    return {name: level for name, level in levels.items() if level is not None}


def short_name(corpus: str) -> str:
    """A corpus's name without the path to it: the folder's for token files, the file's for text."""
    if corpus.startswith("hf:"):
        return corpus
    path = Path(corpus)
    return (path.parent.resolve().name if path.name == "train.bin" else path.resolve().name) or corpus
