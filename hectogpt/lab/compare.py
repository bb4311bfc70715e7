"""Compare arms over the same seeds: find the missing trials and summarise the recorded ones.

A trial that has been recorded is not run again. A trial that diverged counts as a uniform guess;
one that crashed does not count. If a trial breaks rules of its track, its record lists them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hectogpt import hardware
from hectogpt.data import Corpus
from hectogpt.display import NGRAMS
from hectogpt.errors import DataError, Setting, SetTo, UserError
from hectogpt.lab.ngram import NgramModels
from hectogpt.lab.plan import Arm
from hectogpt.lab.record import Record, append_record, read_records, trial_key
from hectogpt.lab.sequential import compare_sequentially
from hectogpt.lab.statistics import Paired, Summary, compare_pairs, p_text, summarize
from hectogpt.lab.tracks import Track, broken_rules
from hectogpt.lab.trial import request_of
from hectogpt.serialization import dump
from hectogpt.training.evaluate import SEQ_LEN
from hectogpt.training.run import Data, Run, files_of
from hectogpt.training.setup import check_corpus, fit_vocabulary, training_tokens


@dataclass(frozen=True)
class Trial:
    """One arm at one seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> tuple[str, int]:
        """The arm's label and the seed, the key of this trial in `Comparison.records`."""
        return self.arm.label, self.seed


@dataclass(frozen=True)
class Result:
    """The losses of one arm over its seeds, and its paired difference from the first arm.

    `to_first` is None for the first arm itself.
    """

    arm: Arm
    dev: Summary
    test: Summary | None
    to_first: Paired | None
    records: list[Record]

    @property
    def compared(self) -> Summary:
        """The losses to compare: those on test if it was scored, otherwise those on dev."""
        return self.test or self.dev

    def mean(self, name: str) -> float | None:
        """The mean of a numeric field over the records that have it, or None if none has it."""
        values = [value for record in self.records if (value := getattr(record, name)) is not None]
        return sum(values) / len(values) if values else None

    @property
    def rules_broken(self) -> tuple[str, ...]:
        """Every rule that at least one of the trials breaks, each once."""
        return tuple(
            dict.fromkeys(rule for record in self.records for rule in record.rules_broken)
        )

    def as_json(self) -> dict[str, Any]:
        """The result as plain values, without the records."""
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

    Args:
        arms: the runs to compare, each of them with the first.
        seeds: the seeds that every arm is trained with.
        corpus: the text to train on and to score.
        track: the rules that trials are checked against.
        out: the JSONL file of records.
        test: also score the test split, and compare by it.
        sequential: add seeds until every arm is decided, with a test that stays valid at every
            look (see `rounds`).

    Attributes:
        all_seeds: the seeds that were asked for.
        seeds: the seeds in use: all of them, or in a sequential comparison the first ones, to
            which `rounds` adds more.
        records: (arm label, seed) -> record, filled by `read` and `add`.
        failed: records of crashed trials, filled by `add`.
        ended: why a sequential comparison stopped; "" before that.
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
                Setting("seeds", 0),
                why="a comparison needs at least one seed",
                fix=SetTo("seeds", 5),
            )
        if sequential and len(arms) < 2:
            raise UserError("one arm: there is nothing to decide", fix="name two recipes")
        self.arms = [replace(arm, run=fit_vocabulary(arm.run, corpus.tokenizer)) for arm in arms]
        for arm in self.arms:
            check_corpus(arm.run, corpus)
            needed = 2 * min(SEQ_LEN, arm.run.model.context_length) + 1
            if track.scoring == "counting" and len(corpus.dev) < needed:
                raise DataError(
                    f"the dev text has {len(corpus.dev)} tokens",
                    why=f"{track.name} fits weights on one half and scores the other, so it needs "
                    f"{needed}",
                    fix=SetTo("track", "closed"),
                )
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
        self.read()

    @property
    def split(self) -> str:
        """The split that is compared, "test" or "dev"."""
        return "test" if self.test else "dev"

    def trials(self) -> list[Trial]:
        """All trials, seed by seed, so that the trials done before an interruption form pairs."""
        return [Trial(arm, seed) for seed in self.seeds for arm in self.arms]

    def read(self) -> None:
        """Read the records from the file again, because other processes may have added some.

        If `test` is set, records without a test score are ignored.
        """
        known: dict[str, Record] = {}
        for record in read_records(self.out):
            key = record.key()
            if record.counts and (key not in known or known[key].test_loss is None):
                known[key] = record
        self.records = {}
        for trial in self.trials():
            key = trial_key(
                dump(self.run_of(trial)), self.corpus.sha256, self.track.name, trial.seed
            )
            if key in known and known[key].loss(self.split) is not None:
                self.records[trial.name] = known[key]

    def missing(self) -> list[Trial]:
        """The trials without a valid record, according to the last `read` and `add`."""
        return [trial for trial in self.trials() if trial.name not in self.records]

    def request(self, trial: Trial) -> dict[str, Any]:
        """The request for the trial's process."""
        return request_of(
            self.run_of(trial), self.corpus, ["dev", *["test"] * self.test], self.track.scoring
        )

    def add(self, trial: Trial, result: dict[str, Any]) -> Record:
        """Append the record of a trial that has ended, and keep copies of its idea files.

        Args:
            trial: the trial that has ended.
            result: the fields returned by `trial.ask`, plus `wall_seconds`.

        Raises UserError (STORAGE).
        """
        run = self.run_of(trial)
        for idea in files_of(run):
            idea.keep(self.out.parent / "ideas" / f"{idea.sha256}.py")
        fields = result | {
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
        try:
            if record.counts:
                record = replace(record, **self._ngram_fields(run))
        finally:  # Ctrl-C during the seconds of counting does not lose the trial
            append_record(self.out, record)
            if record.counts:
                self.records[trial.name] = record
            else:
                self.failed.append(record)
        return record

    def run_of(self, trial: Trial) -> Run:
        """The run of a trial.

        It has the trial's seed, and the corpus's name without its path. If the arm's run does not
        set the number of threads, the trial gets one per physical core, up to the track's limit.
        """
        run = trial.arm.run
        cores = self.track.cores
        threads = run.threads or (0 if cores is None else min(cores, hardware.physical_cores()))
        return replace(run, seed=trial.seed, threads=threads, corpus=short_name(self.corpus.name))

    def _ngram_fields(self, run: Run) -> dict[str, Any]:
        """N-gram baselines on the tokens that the run reads.

        They are computed only once for all runs that read the same tokens.
        """
        reads = (run.data, run.seed, run.steps)
        if reads not in self._ngrams:
            tokens = training_tokens(run, self.corpus)
            self._ngrams[reads] = NgramModels(tokens, self.corpus.n_vocab).losses(
                self.corpus.tokens[self.split]
            )
        return {"ngram_split": self.split} | {
            f"ngram_{name}": loss for name, loss in self._ngrams[reads].items()
        }

    def unchanged(self) -> list[str]:
        """A line for each arm whose run differs from the first arm's only in name and files."""
        first, *others = [self.run_of(Trial(arm, 0)) for arm in self.arms]
        return [
            f"{run.recipe} changes no field of {first.recipe}, and trials do not call its function"
            for run in others
            if replace(run, recipe=first.recipe, ideas=first.ideas) == first
        ]

    def losses(self, arm: Arm, split: str) -> dict[int, float]:
        """Seed -> held-out loss, for the trials recorded so far."""
        return {
            seed: loss
            for seed in self.seeds
            if (record := self.records.get((arm.label, seed)))
            and (loss := record.loss(split)) is not None
        }

    def pair(self, arm: Arm) -> Paired | None:
        """Compare an arm with the first on the seeds recorded so far.

        Returns None if the two arms share no seed.
        """
        new, old = (self.losses(one, self.split) for one in (arm, self.arms[0]))
        return compare_sequentially(new, old) if self.sequential else compare_pairs(new, old)

    def rounds(self, workers: int = 1) -> Iterator[list[Trial]]:
        """Yield the trials to run, in rounds. A trial that crashes is not run again.

        Args:
            workers: how many trials run at a time.

        In a sequential comparison, each round adds one seed, or enough to keep all workers busy,
        and yields the missing trials of the arms that are still undecided. The verdict does not
        depend on `workers`: seeds are tested in order, and those after the deciding one are
        ignored. The rounds end once every arm is decided against the first one, after all seeds,
        or once the same arm has crashed in two rounds in a row.
        """
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
            self.read()
            trials = [trial for trial in self.missing() if trial.seed in new and trial.arm in arms]
            yield trials
            lost = {trial.arm.label for trial in trials if trial.name not in self.records}
            if lost & crashed:
                self.ended = f"{', '.join(sorted(lost & crashed))} crashed twice in a row"
                return
            crashed = lost
            arms = self.undecided()
        count = f"{done} seed{'' if done == 1 else 's'}"
        self.ended = f"not decided after all of {count}" if arms else f"decided after {count}"

    def undecided(self) -> list[Arm]:
        """The first arm and those not yet decided against it, or [] if all are decided."""
        first, *others = self.arms
        left = [
            arm for arm in others if (pair := self.pair(arm)) is None or pair.verdict == "unproven"
        ]
        return [first, *left] if left else []

    def results(self) -> list[Result]:
        """One Result for each arm that has a record, in order."""
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


def ngram_means(results: Sequence[Result], split: str) -> dict[str, float]:
    """The first arm's n-gram baselines of a split, each a mean over the seeds that have it."""
    means: dict[str, float] = {}
    for result in results[:1]:
        records = [record for record in result.records if record.ngram_split == split]
        for name in NGRAMS:
            if (mean := replace(result, records=records).mean(f"ngram_{name}")) is not None:
                means[name] = mean
    return means


def result_table(results: Sequence[Result], split: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of a comparison: losses on the split and paired gains."""
    rows = []
    for result in results:
        pair = result.to_first
        cells = [result.arm.label, str(result.compared.n), str(result.compared)]
        p = "" if pair is None or pair.p is None else p_text(pair.p)
        rows.append(cells + (["", "", ""] if pair is None else [str(pair), p, pair.verdict]))
    return ["arm", "n", f"{split} loss ± SD", "gain over the first [95 %]", "p", "verdict"], rows


def short_name(corpus: str) -> str:
    """A corpus's name without its path: the folder's for token files, otherwise the file's."""
    if corpus.startswith("hf:"):
        return corpus
    path = Path(corpus)
    return (
        path.parent.resolve().name if path.name == "train.bin" else path.resolve().name
    ) or corpus
