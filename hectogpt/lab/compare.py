"""A comparison: arms over the same seeds, which of their trials are missing, and what the recorded
ones say.

A trial once recorded is not run again; one that diverged counts as a uniform guess, one that
crashed does not count. A trial that breaks the rules of its track is recorded with the rules that
it broke."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hectogpt import hardware
from hectogpt.data import Corpus
from hectogpt.display import NGRAMS
from hectogpt.errors import UserError, set_to
from hectogpt.lab.ideas import files_of
from hectogpt.lab.ngram import NgramModels
from hectogpt.lab.plan import Arm
from hectogpt.lab.record import Record, append_record, read_records, trial_key
from hectogpt.lab.sequential import compare_sequentially
from hectogpt.lab.statistics import Paired, Summary, compare_pairs, p_text, summarize
from hectogpt.lab.tracks import Track, broken_rules
from hectogpt.lab.trial import request_of
from hectogpt.serialization import dump
from hectogpt.training.run import Data, Run
from hectogpt.training.setup import check_corpus, fit_vocabulary, training_tokens


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
    """An arm's losses over its seeds, and its paired difference to the first arm (None for the
    first).
    """

    arm: Arm
    dev: Summary
    test: Summary | None
    to_first: Paired | None
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
        return tuple(
            dict.fromkeys(rule for record in self.records for rule in record.rules_broken)
        )

    def as_json(self) -> dict[str, Any]:
        """The result without the records."""
        return {
            "arm": self.arm.label,
            "modified": bool(self.arm.overrides),
            "seeds": {record.seed: record.status for record in self.records},
            "dev": asdict(self.dev),
            "test": self.test and asdict(self.test),
            "to_first": self.to_first and asdict(self.to_first),
        }


class Comparison:
    """Arms x seeds on one corpus and track, and the records of their trials.

    out: the file of records. test: whether to score the test split too, and compare by it.
        sequential: whether seeds
    are added until the arms are decided, by the test that may be looked at after every seed
    (`rounds`): `seeds` is then
    the first of `all_seeds`, which grows, and `ended` says in the end why there are no more.
    records: (arm's label, seed) -> record, as `missing` and `add` find them. failed: trials that
        crashed, of `add`.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        seeds: Sequence[int],
        corpus: Corpus,
        track: Track,
        out: Path,
        test: bool = False,
        sequential: bool = False,
    ) -> None:
        if not seeds:
            raise UserError(
                "seeds = 0", why="a comparison needs at least one seed", fix=set_to("seeds", 5)
            )
        if sequential and len(arms) < 2:
            raise UserError("one arm: there is nothing to decide", fix="name two recipes")
        self.arms = [replace(arm, run=fit_vocabulary(arm.run, corpus.tokenizer)) for arm in arms]
        for arm in self.arms:
            check_corpus(arm.run, corpus)
        self.all_seeds = list(seeds)
        self.corpus = corpus
        self.track = track
        self.out = out
        self.test = test
        self.sequential = sequential
        self.ended = ""
        self.seeds = self.all_seeds[:1] if sequential else self.all_seeds
        self.records: dict[tuple[str, int], Record] = {}
        self.failed: list[Record] = []
        self._ngrams: dict[tuple[Data, int, int], dict[str, float]] = {}

    @property
    def split(self) -> str:
        """The split that is compared, "test" or "dev"."""
        return "test" if self.test else "dev"

    def trials(self) -> list[Trial]:
        """Seed by seed, so that what an interruption leaves is paired."""
        return [Trial(arm, seed) for seed in self.seeds for arm in self.arms]

    def missing(self) -> list[Trial]:
        """Read the records; the trials that have none that counts (if `test`: none with a test
        score).
        """
        known: dict[str, Record] = {}
        for record in read_records(self.out):
            key = record.key()
            if record.counts and (key not in known or known[key].test_loss is None):
                known[key] = record
        self.records = {}
        missing = []
        for trial in self.trials():
            key = trial_key(
                dump(self.run_of(trial)), self.corpus.sha256, self.track.name, trial.seed
            )
            if key in known and known[key].loss(self.split) is not None:
                self.records[trial.name] = known[key]
            else:
                missing.append(trial)
        return missing

    def request(self, trial: Trial) -> dict[str, Any]:
        """What the trial's process is asked."""
        return request_of(
            self.run_of(trial), self.corpus, ["dev", *["test"] * self.test], self.track.scoring
        )

    def add(self, trial: Trial, result: dict[str, Any]) -> Record:
        """Append the record of a trial that has ended; its ideas are kept beside the records.
        result: of `trial.ask`, and the trial's `wall_seconds`. Raises UserError (STORAGE)."""
        run = self.run_of(trial)
        for idea in files_of(run):
            idea.keep(self.out.parent / "ideas" / f"{idea.sha256}.py")
        fields = result | (self._ngram_fields(run) if result["status"] != "failed" else {})
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
        }
        names = [field.name for field in dataclasses.fields(Record)]
        record = Record(**{name: fields[name] for name in names if name in fields})
        broken = broken_rules(
            self.track, run, self.corpus, record.params, record.seconds, record.machine
        )
        record = replace(record, rules_broken=broken)
        append_record(self.out, record)
        if record.counts:
            self.records[trial.name] = record
        else:
            self.failed.append(record)
        return record

    def run_of(self, trial: Trial) -> Run:
        """The trial's run: its seed, as many threads as the track allows unless the run says how
        many, and the corpus by a name that means the same on another machine."""
        run = trial.arm.run
        cores = self.track.cores
        threads = run.threads or (0 if cores is None else min(cores, hardware.physical_cores()))
        return replace(run, seed=trial.seed, threads=threads, corpus=short_name(self.corpus.name))

    def _ngram_fields(self, run: Run) -> dict[str, Any]:
        reads = (run.data, run.seed, run.steps)
        if reads not in self._ngrams:
            tokens = training_tokens(run, self.corpus)
            self._ngrams[reads] = NgramModels(tokens, self.corpus.n_vocab).losses(
                self.corpus.tokens[self.split]
            )
        return {"ngram_split": self.split} | {
            f"ngram_{name}": loss for name, loss in self._ngrams[reads].items()
        }

    def losses(self, arm: Arm, split: str) -> dict[int, float]:
        """Seed -> held-out loss of the trials recorded so far."""
        found = {
            seed: self.records[arm.label, seed]
            for seed in self.seeds
            if (arm.label, seed) in self.records
        }
        return {
            seed: loss
            for seed, record in found.items()
            if (loss := record.loss(split)) is not None
        }

    def pair(self, arm: Arm) -> Paired | None:
        """What the test says about an arm against the first so far; None if they share no seed."""
        new, old = (self.losses(one, self.split) for one in (arm, self.arms[0]))
        return compare_sequentially(new, old) if self.sequential else compare_pairs(new, old)

    def rounds(self, workers: int = 1) -> Iterator[list[Trial]]:
        """The trials to run, each once: one that has crashed is not run again. workers: how many
        run at a time.

        Of a sequential comparison each round adds a seed, or as many as several workers need, and
        yields their missing trials. What is decided does not depend on that: seeds are looked at
        in their order, and those after the first look that decides do not count. The rounds end
        when every arm is decided against the first one, after all seeds, and after two rounds in a
        row in which an arm crashes. Arms that are decided are not run further."""
        if not self.sequential:
            yield self.missing()
            return
        done = 0
        crashed = set[str]()
        arms = self.arms
        while arms and done < len(self.all_seeds):
            new = self.all_seeds[done : done + max(1, workers // len(arms))]
            done += len(new)
            self.seeds = self.all_seeds[:done]
            trials = [trial for trial in self.missing() if trial.seed in new and trial.arm in arms]
            yield trials
            lost = {trial.arm.label for trial in trials if trial.name not in self.records}
            if lost & crashed:
                self.ended = f"{', '.join(sorted(lost & crashed))} crashed twice in a row"
                return
            crashed = lost
            arms = self.undecided()
        count = f"{done} seed{'s' * (done != 1)}"
        self.ended = f"all of {count} are run, not decided" if arms else f"decided after {count}"

    def undecided(self) -> list[Arm]:
        """The first arm and those that are not decided against it; [] if all are."""
        first, *others = self.arms
        left = [
            arm for arm in others if (pair := self.pair(arm)) is None or pair.verdict == "unproven"
        ]
        return [first, *left] if left else []

    def results(self) -> list[Result]:
        """One Result per arm that has a record, in order."""
        found: list[Result] = []
        for arm in self.arms:
            if losses := self.losses(arm, self.split):
                pair = None if arm is self.arms[0] else self.pair(arm)
                dev = summarize(list(self.losses(arm, "dev").values()))
                test = summarize(list(losses.values())) if self.test else None
                found.append(
                    Result(
                        arm, dev, test, pair, [self.records[arm.label, seed] for seed in losses]
                    )
                )
        return found


def ngram_means(results: Sequence[Result]) -> dict[str, float]:
    """Mean over seeds of the first arm's n-gram baselines."""
    levels = {name: results[0].mean(f"ngram_{name}") for name in NGRAMS} if results else {}
    return {name: level for name, level in levels.items() if level is not None}


def result_table(results: Sequence[Result], split: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of a comparison: losses on the split, paired gains over the
    first arm.
    """
    rows = []
    for result in results:
        pair = result.to_first
        cells = [result.arm.label, str(result.compared.n), str(result.compared)]
        p = "" if pair is None or pair.p is None else p_text(pair.p)
        rows.append(cells + (["", "", ""] if pair is None else [str(pair), p, pair.verdict]))
    return ["arm", "n", f"{split} loss ± SD", "gain over the first [95 %]", "p", "verdict"], rows


def short_name(corpus: str) -> str:
    """A corpus's name without the path to it: the folder's for token files, the file's for
    text.
    """
    if corpus.startswith("hf:"):
        return corpus
    path = Path(corpus)
    return (
        path.parent.resolve().name if path.name == "train.bin" else path.resolve().name
    ) or corpus
