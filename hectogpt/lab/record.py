"""The record of a trial, a line of a JSONL file: fields, identity, reading and appending."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from hectogpt import errors
from hectogpt.errors import DataError, SetTo, UserError
from hectogpt.files import append_line, is_whole_object, parse_json_object, read_bytes
from hectogpt.serialization import diff, dump, load
from hectogpt.training.run import Run, load_run

# Fields that are not part of an experiment's identity. The text is identified by its hash, not by
# its name. Threads are left out too, but they change the order of sums and so their rounding,
# which SOAP amplifies: on sotu, a seed's loss moved by 0.004 (dev) and 0.006 (test), about the SD
# over seeds. So `trial_key` has them, and trials with different numbers of threads form no pair.
NOT_IDENTITY = ("seed", "threads", "corpus")

Status = Literal["ok", "diverged", "failed"]


@dataclass(frozen=True)
class Record:
    """One trial: what was run, where, and with which result.

    Losses are in nats per token, `bpb` in bits per byte of text. A trial whose loss stopped being
    finite ("diverged") counts as a uniform guess. A trial that crashed ("failed") says nothing
    about its run: it has no losses and is run again.
    """

    corpus: str  # the corpus's name, without a path
    track: str  # the track whose rules it was checked against
    recipe: str  # the recipe's name
    seed: int
    # The whole Run as `dump` writes it, with today's names of fields if this version has them.
    run: dict[str, Any]
    corpus_sha256: dict[str, str] = field(default_factory=dict)  # split -> hash of its tokens
    arm: str = ""  # recipe and overrides in one string
    modified: bool = False  # True if fields of the recipe were overridden
    overrides: dict[str, Any] = field(default_factory=dict)  # dotted field of the run -> value
    steps: int | None = None  # optimizer steps asked for
    train_tokens: int | None = None  # training tokens asked for
    version: str | None = None  # of this package
    commit: str | None = None  # of the checkout; None outside one
    dirty: bool | None = None  # True if the package's files differed from the commit
    machine: dict[str, Any] | None = None  # device, dtypes, threads
    params: int | None = None  # parameters of the model
    seconds: float | None = None  # s; building, compiling and training
    peak_mb: float | None = None  # largest memory up to the end of training, MiB
    status: Status = "ok"
    error: str | None = None  # the whole message, if status is not "ok"
    train_loss_last: float | None = None  # on the last batch
    train_loss_last10: float | None = None  # mean over the last ten batches
    dev_loss: float | None = None  # on the dev split
    dev_bpb: float | None = None
    test_loss: float | None = None  # on the test split; None unless it was asked for
    test_bpb: float | None = None
    ngram_split: str | None = None  # the split that the n-gram baselines were scored on
    ngram_uniform: float | None = None
    ngram_unigram: float | None = None
    ngram_kn2: float | None = None
    ngram_kn3: float | None = None
    ngram_kn5: float | None = None
    ngram_mkn5: float | None = None  # only records of this repository have this and the next
    ngram_best: float | None = None
    rules_broken: list[str] = field(default_factory=list)  # rules of the track, as sentences
    wall_seconds: float | None = None  # s; the whole trial, including scoring
    losses: list[float] = field(default_factory=list)  # training loss at every step, five digits
    # Gradient norm before clipping at every step, five digits.
    grad_norms: list[float] = field(default_factory=list)

    @property
    def counts(self) -> bool:
        """True if the trial enters the statistics and need not be run again."""
        return self.status != "failed"

    def key(self) -> str:
        """The trial's identity: `trial_key` of its run, texts, track and seed."""
        return trial_key(self.run, self.corpus_sha256, self.track, self.seed)

    def experiment(self) -> str:
        """Identity of the experiment: equal for all seeds and tracks of one run on one text."""
        return experiment_key(self.run, self.corpus_sha256)

    def loss(self, split: str) -> float | None:
        """The held-out loss on "dev" or "test", or None if that split was not scored."""
        loss: float | None = getattr(self, f"{split}_loss")
        return loss

    def outcome(self, split: str) -> str:
        """The result of the trial in one line."""
        loss = self.loss(split)
        facts = [] if loss is None else [f"{split} loss {loss:.4f}"]
        facts += [f"{self.seconds:.1f} s"] if self.seconds is not None else []
        return ", ".join(facts + ([f"{self.status}: {self.error}"] if self.status != "ok" else []))


def parse_run(run: Mapping[str, Any]) -> Run | None:
    """Load a Run that `dump` wrote; return None if this version cannot express it."""
    # Data that was never a run may raise any of these.
    with suppress(
        UserError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError
    ):
        return load_run(dict(run))
    return None


def experiment_key(run: Mapping[str, Any], corpus_sha256: Mapping[str, str]) -> str:
    """Identity of an experiment: the run (every field except NOT_IDENTITY) and the texts.

    Args:
        run: the run as `dump` writes it today. A record's run is converted to that form when it is
            read, with default values for fields that are newer than the record. A run that this
            version cannot express stays as it is.
        corpus_sha256: split -> hash of its tokens.
    """
    fields = {name: value for name, value in run.items() if name not in NOT_IDENTITY}
    texts = [corpus_sha256.get(split) for split in ("train", "dev", "test")]
    return json.dumps([fields, texts], sort_keys=True, allow_nan=False)


def trial_key(
    run: Mapping[str, Any], corpus_sha256: Mapping[str, str], track: str, seed: int
) -> str:
    """Identity of a trial: the experiment, the track, the seed and the run's number of threads."""
    return json.dumps(
        [experiment_key(run, corpus_sha256), track, seed, run.get("threads")], allow_nan=False
    )


def changed(before: Run, after: Run) -> dict[str, Any]:
    """Fields in which two runs differ as experiments: dotted field -> its value in `after`."""
    left_out = (*NOT_IDENTITY, "recipe", "ideas")
    return {
        path: new
        for path, (_, new) in diff(before, after).items()
        if path.split(".")[0] not in left_out
    }


def failures(records: Iterable[Record]) -> list[str]:
    """One line, with the seeds, for each way in which trials failed or broke rules."""
    seeds: dict[str, list[int]] = {}
    counted = {"diverged": "counted as a uniform guess", "failed": "not counted"}
    for record in records:
        lines = []
        if how := counted.get(record.status):
            lines.append(f"{record.status}, {how}: {record.error}")
        if record.rules_broken:
            broken = "; ".join(record.rules_broken)
            lines.append(f"breaks the rules of {record.track}: {broken}")
        for line in lines:
            line = f"{record.arm or record.recipe}: {line}"
            seeds.setdefault(line, []).append(record.seed)
    return [f"{line} (seed {', '.join(map(str, sorted(which)))})" for line, which in seeds.items()]


def arm_label(recipe: str, overrides: Mapping[str, Any]) -> str:
    """A recipe and its overrides in one string, such as "muon optim.lr=0.01"."""
    changes = (f"{name}={json.dumps(value, allow_nan=False)}" for name, value in overrides.items())
    return " ".join([recipe, *changes])


# --- the file

_NAMES = [f.name for f in dataclasses.fields(Record)]
LARGEST_FILE = 1 << 30  # bytes; a record has about 3000
LARGEST = 1e12  # limit for floats; no loss, time (s) or memory (MiB) comes near it
LONGEST_NAME = 1000  # characters of the name of a corpus, track, recipe or arm


def read_records(path: Path) -> list[Record]:
    """Read the records of a JSONL file, including failed trials.

    Returns [] if the file does not exist. An incomplete last line is ignored. Raises UserError
    (DATA) for a file that cannot be read, and for a line that is not a record, with the number of
    the line and the name of the field.
    """
    return [
        _read(path, number, line)
        for number, line in enumerate(_lines_of(path), start=1)
        if line.strip()
    ]


def _lines_of(path: Path) -> list[bytes]:
    try:
        content = read_bytes(path, LARGEST_FILE)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise errors.unreadable(path, error) from None
    *lines, last = content.split(b"\n")
    return lines + ([last] if is_whole_object(last) else [])


@lru_cache(maxsize=10_000)  # a comparison reads its file before every trial
def _read(path: Path, number: int, line: bytes) -> Record:
    """Parse a line, which may come from somebody else; unknown fields are ignored."""
    try:
        row = parse_json_object(line)
        record: Record = load(Record, {name: row[name] for name in _NAMES if name in row})
        load(int, record.run.get("steps"), "run.steps")
        if record.counts and record.dev_loss is None:
            raise ValueError("it has no field 'dev_loss'")
        _check_bounds(record)
    except (UserError, ValueError) as error:
        why = f"{error.what}; {error.why}" if isinstance(error, UserError) else str(error)
        what = f"{path}, line {number} is not a record"
        raise DataError(what, why=why, fix="remove that line") from None
    run = parse_run(record.run)
    return record if run is None else dataclasses.replace(record, run=dump(run))


def _check_bounds(record: Record) -> None:
    """Raise ValueError for a number out of bounds, or a name that is too long to be shown."""
    for name in _NAMES:
        value = getattr(record, name)
        for number in value if isinstance(value, list) else [value, record.run["steps"]]:
            if isinstance(number, int | float) and not 0 <= number <= (
                LARGEST if isinstance(number, float) else 2**64
            ):
                raise ValueError(f"{name} is out of bounds: {str(number)[:60]}")
    if max(map(len, (record.corpus, record.track, record.recipe, record.arm))) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} characters")


def check_writable(path: Path) -> None:
    """Create a file of records and its folder if they do not exist.

    Raises UserError (STORAGE) now, rather than after hours of trials.
    """
    with errors.writing(path, fix=SetTo("out", "a file you may write to")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()


def append_record(path: Path, record: Record) -> None:
    """Append one record and flush it to disk; several processes may append at the same time.

    Raises UserError (STORAGE) with the record's line in it, so that the trial is not lost.
    """
    line = json.dumps(vars(record), allow_nan=False)
    kept = f"the records written before, and this line, to be added by hand: {line}"
    with errors.writing(path, fix=SetTo("out", "a file you may write to"), kept=kept):
        append_line(path, line)
