"""The judge of an idea. It never runs the idea's code and believes nothing that the idea says.

For every seed, drawn from a secret, and every corpus the base and the idea train in processes of
their own (lab/contestant.py), on training text that is dealt to them batch by batch. Then rows of
the test text are drawn and dealt to other processes, which have the weights alone: a token of
every row at a time, and the next one only when the whole distribution of it has come back. The
judge itself normalises the distributions and takes the loss. So there is nothing to be believed:
no loss is reported, and the token that is asked for does not exist yet."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import __version__, files, hardware, sandbox
from hectogpt.data import Corpus
from hectogpt.errors import UserError, set_to
from hectogpt.kernels.build import find
from hectogpt.lab.compare import short_name
from hectogpt.lab.contestant import planned
from hectogpt.lab.judgement import ARMS, Entrant, Judgement, draw, draw_seed, hash_of, weights_in
from hectogpt.lab.statistics import LEAST_DIFFERENCE
from hectogpt.lab.talk import Talk, clean_weights, nats
from hectogpt.lab.tracks import TRACKS, Taken, rules_broken
from hectogpt.process import revision
from hectogpt.signals import WORDS, code_of
from hectogpt.training.evaluate import SEQ_LEN
from hectogpt.training.run import Data

RULES = TRACKS["closed"]  # with the steps and tokens of the base
MOST_NUMBERS = RULES.parameters or 0  # of all weights, buffers too
ROWS = 32  # of the test text, dealt side by side
MOST_ROWS = 64  # for a seed
NOISE = LEAST_DIFFERENCE / 4  # nats: the standard error of a seed's gain over the rows
AGAIN = 2  # rows that are dealt again, each alone
ALONE = 5e-3  # nats, mean difference: batches of another size round otherwise
MOST_SEEDS = 12
# Times the processor time of the base's training, and seconds beside: text can be read once and
# computed with often.
MOST_TIMES = 3.0
SLACK = 10.0
SAME_BITS = "gives the same bits again"
ACROSS_MACHINES = 0.02  # nats that a loss may differ by: SOAP enlarges how sums are rounded
# Variables that its processes have.
ENVIRONMENT = ("PATH", "LANG", "LD_LIBRARY_PATH", "CXX", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
Tell = Callable[[str], None]


class EndedError(Exception):
    """The judgement is over. word: "refused" (the idea breaks a rule, or cannot be run) or
    "dishonest" (a check failed). Its text says why."""

    def __init__(self, word: str, why: str) -> None:
        super().__init__(why[:3000])
        self.word = word


@dataclass(frozen=True)
class Trained:
    """What came of a training. facts: of its trial, measured from outside. weights: as safetensors
    has them; None if the training diverged."""

    facts: dict[str, Any]
    weights: bytes | None = None


def judge(
    entrant: Entrant,
    corpora: Sequence[Corpus],
    out: Path,
    *,
    minutes: float = 30.0,
    most_seeds: int = MOST_SEEDS,
    threads: int = 0,
    tell: Tell = lambda _: None,
) -> Judgement:
    """Judge an idea until its gains decide, or the minutes or seeds are used up.

    Args:
        out: the record, which grows, or a folder for it.
        tell: called with a line at each event; the first has the hash that the record commits to.

    Raises UserError for a base that cannot be trained, STORAGE for a record that cannot be
    written. Ctrl-C ends it with the verdict of the seeds so far."""
    at = datetime.now(UTC)
    secret = secrets.token_hex(32)
    if out.suffix != ".jsonl":
        out /= f"{entrant.idea.replace('.py:', '-')}-{at:%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"
    if out.exists():
        why = "a judgement has a record of its own"
        raise UserError(f"{out} exists", why=why, fix=set_to("out", "another name"))
    texts = {short_name(corpus.name): corpus for corpus in corpora}
    about = {
        "protocol": 2,
        "sealed": sandbox.bubblewrap() is not None,
        "corpora": list(texts),
        "corpus_sha256": {name: corpus.sha256 for name, corpus in texts.items()},
        "minutes": minutes,
        "most_seeds": most_seeds,
        "threads": threads or min(2, hardware.physical_cores()),
        "version": __version__,
        "commit": revision(Path(__file__).parents[1]).commit,
        "machine": hardware.cpu_name(),
        "at": at.isoformat(timespec="seconds"),
        "commitment": hash_of(secret),
    }
    tell(f"commitment {about['commitment']}")
    record = Judgement(out)
    record.write("begin", asdict(entrant) | about)
    judging = Judging(texts, record, secret, tell)
    try:
        judging.finish(minutes * 60, most_seeds)
    except KeyboardInterrupt as stop:
        judging.end(WORDS[code_of(stop)])
    return record


class Judging:
    """A judgement under way, whose record has its first line.

    Attributes:
        runs: "base" and "idea" -> its run, as its first process described it.
        processor: seconds of processor time that a training of the base has taken at most.
    """

    def __init__(
        self, corpora: dict[str, Corpus], record: Judgement, secret: str, tell: Tell
    ) -> None:
        self.corpora = corpora
        self.record = record
        self.secret = secret
        self.tell = tell
        self.entrant = Entrant(**{one.name: record.begin[one.name] for one in fields(Entrant)})
        self.runs: dict[str, dict[str, Any]] = {}
        self.processor = 0.0
        find()  # the kernels are compiled once, here
        self.policy = sandbox.python_policy(str(files.cache_dir() / "kernels"))

    def finish(self, seconds: float, most_seeds: int) -> None:
        """Run the seeds and write the verdict."""
        try:
            self.end(self.run_seeds(seconds, most_seeds))
        except EndedError as error:
            self.end("", error.word, str(error))

    def end(self, ended: str, word: str = "", *reasons: str) -> None:
        """Write the verdict. ended: why there are no more seeds. word: that of an EndedError."""
        verdict = {"word": word or self.record.decided(), "reasons": reasons, "ended": ended}
        self.record.write("verdict", verdict | {"secret": self.secret})

    def run_seeds(self, seconds: float, most_seeds: int) -> str:
        """Train and score, seed by seed. Returns why it ended. Raises EndedError."""
        begun = time.monotonic()
        slowest = 0.0
        self.check("carries no weights", *weights_in(self.entrant.source))
        for number in range(most_seeds):
            at = time.monotonic()
            if number and at - begun + slowest > seconds:
                return f"the {seconds / 60:g} minutes have no room for another seed"
            # Written together: a verdict has whole seeds.
            for trial in [one for name in self.corpora for one in self.trials(name, number)]:
                self.record.write("trial", trial)
            slowest = max(slowest, time.monotonic() - at)
            if self.record.decided() != "unproven":
                return f"decided after {number + 1} seed{'s' if number else ''}"
        return f"all of {most_seeds} seeds are run"

    def trials(self, corpus: str, number: int) -> list[dict[str, Any]]:
        """Train both arms with a seed, and score both on the same rows, which are drawn
        afterwards: more of them, until their noise is small. Returns the fields of both trials."""
        text = self.corpora[corpus]
        seed = draw_seed(self.secret, number)
        trained = {arm: self.train(arm, seed, text) for arm in ARMS}
        if not self.has_passed(SAME_BITS):
            self.check_bits(seed, text, trained["idea"])
        rows = self.draw_rows(corpus, number)
        losses = np.empty((len(ARMS), 0, rows.shape[1] - 1))
        for group in np.split(rows, range(ROWS, len(rows), ROWS)):
            more = [self.score(arm, seed, trained[arm], group) for arm in ARMS]
            losses = np.concatenate((losses, more), axis=1)
            if are_enough((losses[0] - losses[1]).mean(axis=1)):
                break
        order = draw(self.secret, f"alone {corpus} {number}").permutation(losses.shape[1])[:AGAIN]
        self.check_alone(seed, trained["idea"], rows[order], losses[1, order])
        trials = []
        for arm, loss in zip(ARMS, losses.mean(axis=(1, 2)).tolist(), strict=True):
            about = {"arm": arm, "corpus": corpus, "seed": seed, "loss": loss}
            trials.append(about | {"rows": losses.shape[1]} | trained[arm].facts)
            seconds = trained[arm].facts["seconds"]
            self.tell(f"{corpus}, seed {number + 1}, {arm}: loss {loss:.4f}, {seconds:.1f} s")
        return trials

    # --- the processes

    @contextmanager
    def process(self, arm: str, task: str, seed: int, **more: Any) -> Iterator[Talk]:
        """Begin a task in a new process, which has described its run. After the block, see that it
        ended well.

        Raises EndedError if the idea's process ends otherwise or sends what is no answer,
        UserError if the base's."""
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {"HOME": "/tmp", "HECTOGPT_CACHE": str(files.cache_dir())}
        request = {"task": task, "seed": seed, "links": self.entrant.links(arm)}
        request |= {"threads": self.record.begin["threads"], "policy": asdict(self.policy)} | more
        talk = Talk(request, environment, self.policy, 8 * MOST_NUMBERS)
        try:
            with closing(talk.frames):
                self.check_run(arm, talk.receive()[0])
                yield talk
                attempts = talk.finish()
        except (EndedError, UserError):
            raise
        except Exception as error:  # whatever its answers make of us
            if arm == "base":
                what = f"{self.entrant.base} cannot be judged against"
                raise UserError(what, why=talk.fault(error)) from error
            raise EndedError("refused", f"it cannot {task}: {talk.fault(error)}") from error
        if arm == "idea":
            self.check("stays in its sandbox", attempts)

    def train(self, arm: str, seed: int, text: Corpus) -> Trained:
        """Train an arm on text that is dealt, and take its weights, which are numbers here: never
        opened or copied as a file."""
        with self.process(arm, "train", seed) as talk:
            batches = self.plan(arm, seed, text.tokens["train"].astype(np.uint16))
            talk.send(np.unique(batches))
            begun = time.monotonic()
            before = talk.measure()
            for batch in batches:
                talk.send(batch)
                diverged = "diverged" in talk.receive()[0]
                seconds = time.monotonic() - begun
                processor = talk.measure() - before
                if diverged:
                    break
                self.check_rules(arm, seconds=seconds)
                if arm == "idea" and processor > MOST_TIMES * self.processor + SLACK:
                    times = f"{MOST_TIMES:g} times the processor time of its base"
                    self.refuse(f"training takes more than {times}")
            facts = {"seconds": round(seconds, 2), "processor": round(processor, 2)}
            facts |= {"peak_mb": round(talk.peak_mb)}
            if diverged:
                return Trained(facts | {"diverged": True})
            numbers, weights = clean_weights(talk.receive()[1])
            self.check_rules(arm, params=numbers)
        if arm == "base":
            self.processor = max(self.processor, processor)
        return Trained(
            facts | {"params": numbers, "weights": hashlib.sha256(weights).hexdigest()}, weights
        )

    def plan(self, arm: str, seed: int, tokens: np.ndarray) -> np.ndarray:
        """The rows of each step, uint16 [steps, batch * tokens]. An order of the idea's own is
        asked in a process that has the whole text, and that nothing leaves but the order."""
        run = self.runs[arm]
        size = run["seq_len"]
        if run["shuffled"]:
            data = Data(batch_size=run["batch_size"], seq_len=size)
            numbers = planned(tokens, data, seed, run["steps"])
        else:
            with self.process(arm, "plan", seed) as talk:
                talk.send(tokens)
                numbers = np.frombuffer(talk.receive()[1], np.int64)
        sequences = tokens[: len(tokens) // size * size].reshape(-1, size)
        often = int(np.bincount(numbers).max())
        most = -(-len(numbers) // len(sequences))
        if arm == "idea" and often > most:
            self.refuse(f"a row of the training text is read {often} times, at most {most}")
        return sequences[numbers].reshape(run["steps"], run["batch_size"] * size)

    def score(
        self, arm: str, seed: int, trained: Trained, rows: np.ndarray, width: int = ROWS
    ) -> np.ndarray:
        """Deal rows of test tokens, [rows, tokens + 1], `width` of them side by side, to a new
        process that has the weights. Returns the losses that follow from its distributions,
        float64 [rows, tokens]; those of a uniform guess for a training that diverged."""
        vocab = self.runs["base"]["vocab_size"]
        losses = np.full((len(rows), rows.shape[1] - 1), math.log(vocab))
        if trained.weights is None:
            return losses
        groups = np.split(np.arange(len(rows)), range(width, len(rows), width))
        more = {"tokens": losses.shape[1], "deals": len(groups)}
        with self.process(arm, "score", seed, **more) as talk:
            talk.send(trained.weights)
            for group in groups:
                dealt = rows[group].T.astype(np.int64)
                talk.send(dealt[0])
                for place, targets in enumerate(dealt[1:]):
                    distributions = talk.receive()[1]
                    if place + 1 < losses.shape[1]:
                        talk.send(targets)  # while this one is summed
                    losses[group, place] = nats(distributions, vocab, targets)
        return losses

    def draw_rows(self, corpus: str, number: int) -> np.ndarray:
        """Rows of the test text for a seed, [rows, tokens + 1], each with the last token of the
        row before it.

        No row is drawn for a second seed before all have been drawn.
        """
        tokens = self.corpora[corpus].tokens["test"]
        contexts = [run["context_length"] for run in self.runs.values()]
        size = min(SEQ_LEN, max(contexts), len(tokens) - 1)
        count = (len(tokens) - 1) // size
        order = draw(self.secret, f"rows {corpus}").permutation(count)
        most = min(MOST_ROWS, count)
        chosen = np.take(order, np.arange(number * most, (number + 1) * most), mode="wrap")
        rows: np.ndarray = tokens[chosen[:, None] * size + np.arange(size + 1)]
        return rows

    # --- the checks

    def has_passed(self, name: str) -> bool:
        """True once a check has passed."""
        return any(check["name"] == name for check in self.record.checks)

    def check(self, name: str, fault: str, seen: str = "") -> None:
        """Write a check to the record: what is wrong, "" if nothing is; once if it passes. Raises
        EndedError for a fault."""
        if fault or not self.has_passed(name):
            facts = {"name": name, "passed": not fault, "seen": (fault or seen)[:2000]}
            self.record.write("check", facts)
        if fault:
            raise EndedError("dishonest", f"{name}: {fault}")

    def refuse(self, *faults: str) -> None:
        """End the judgement if there is a fault."""
        if faults:
            raise EndedError("refused", "; ".join(faults))

    def check_run(self, arm: str, run: dict[str, Any]) -> None:
        """The run is the same in every process, and keeps the rules of its base. Raises ValueError
        for a description that is none."""
        numbers = ("steps", "batch_size", "seq_len", "context_length", "vocab_size")
        if not all(type(run[name]) is int and run[name] > 0 for name in numbers):
            raise ValueError(f"no run: {run!r:.200}")
        same = self.runs.setdefault(arm, run) == run
        if arm == "idea":
            fault = "" if same else "another process got another run"
            self.check("is the same run each time", fault)
        self.check_rules(arm)

    def check_rules(
        self, arm: str, params: int | None = None, seconds: float | None = None
    ) -> None:
        """Refuse an idea that breaks a rule: the steps and tokens of the base, and what RULES has
        beside them."""
        if arm == "idea":
            base = self.runs["base"]
            run = self.runs["idea"]
            rules = replace(RULES, steps=base["steps"], tokens=tokens_of(base))
            taken = Taken(run["steps"], tokens_of(run), params=params, seconds=seconds)
            self.refuse(*rules_broken(rules, taken))

    def check_bits(self, seed: int, text: Corpus, trained: Trained) -> None:
        """A second training with the same seed ends with the same weights."""
        same = self.train("idea", seed, text).weights == trained.weights
        self.check(SAME_BITS, "" if same else "another process ends with other weights")

    def check_alone(
        self, seed: int, trained: Trained, rows: np.ndarray, losses: np.ndarray
    ) -> None:
        """Rows that are dealt alone have the losses that they had beside others."""
        again = self.score("idea", seed, trained, rows, width=1)
        apart = float(np.abs(again - losses).mean(axis=1).max())
        means = f"{losses.mean():.4f} nats beside other rows, {again.mean():.4f} alone"
        seen = f"{len(rows)} rows, mean difference {apart:.1e} nats: {means}"
        self.check("scores each row by itself", seen if apart > ALONE else "", seen)


def are_enough(gains: np.ndarray) -> bool:
    """True if the mean of these gains of rows has a standard error below NOISE."""
    return bool(gains.std() < NOISE * len(gains) ** 0.5)


def tokens_of(run: dict[str, Any]) -> int:
    """How many tokens a run reads."""
    tokens: int = run["steps"] * run["batch_size"] * run["seq_len"]
    return tokens


# --- a record, done again


@dataclass(frozen=True)
class Replay:
    """What came of a judgement that was done again.

    Attributes:
        faults: what does not hold, in words.
        largest: the largest difference of a loss, nats.
        again: the record of the second judgement.
    """

    faults: list[str]
    largest: float
    again: Judgement


def replay(judgement: Judgement, corpora: Sequence[Corpus], tell: Tell, folder: Path) -> Replay:
    """Do a judgement again, in `folder`, with the source and the secret of its record.

    Raises UserError for a record without a verdict, of another protocol, and for texts that are
    not those judged."""
    begin = judgement.begin
    secret = judgement.secret
    texts = {short_name(corpus.name): corpus for corpus in corpora}
    why = ""
    if secret is None:
        why = "it has no verdict: it was not finished, and its secret is not known"
    elif begin.get("protocol") != 2:
        why = "it was judged by the first protocol"
    elif {name: corpus.sha256 for name, corpus in texts.items()} != begin["corpus_sha256"]:
        why = f"these are not the texts that were judged, {' and '.join(begin['corpora'])}"
    if secret is None or why:
        raise UserError(f"{judgement.path} cannot be replayed", why=why)
    again = Judgement(folder / "record.jsonl")
    about = {name: value for name, value in begin.items() if name not in ("event", "previous")}
    again.write("begin", about | {"sealed": sandbox.bubblewrap() is not None})
    # What a verdict has reasons for came in a seed that has no trials.
    seeds = len(judgement.gains()) + bool(judgement.reasons)
    Judging(texts, again, secret, tell).finish(math.inf, max(seeds, 1))
    faults = []
    largest = 0.0
    if again.word != judgement.word:
        faults.append(f"the verdict is {again.word}, the record says {judgement.word}")
    if len(again.trials) != len(judgement.trials):
        faults.append(f"{len(again.trials)} trials, the record has {len(judgement.trials)}")
    for old, new in zip(judgement.trials, again.trials, strict=False):
        apart = abs(old["loss"] - new["loss"])
        largest = max(largest, apart)
        if not apart <= ACROSS_MACHINES:
            place = f"{old['corpus']}, seed {old['seed']}, {old['arm']}"
            faults.append(f"{place}: loss {new['loss']:.6f}, the record has {old['loss']:.6f}")
    return Replay(faults, largest, again)
