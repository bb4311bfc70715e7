"""The judge of an idea. It never runs the idea's code and trusts nothing that the idea reports.

For each corpus and each seed (drawn from a secret), base and idea train in separate processes
(lab/contestant.py), on training text that is dealt to them batch by batch. Then rows of the test
text are drawn and dealt to other processes, which have only the weights. They get one token of
every row at a time, and the next one only after they have returned the whole distribution for it.
The judge normalises the distributions and computes the loss itself. So nothing needs to be
trusted: no loss is reported, and a process must predict a token before it can see it.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import __version__, files, hardware, sandbox
from hectogpt.data import Corpus, Shuffled
from hectogpt.display import Note
from hectogpt.errors import SetTo, UserError
from hectogpt.kernels.build import find
from hectogpt.lab.compare import short_name
from hectogpt.lab.contestant import Talk, clean_weights, nats, planned
from hectogpt.lab.judgement import ARMS, Entrant, Judgement, draw, draw_seed, hash_of, weights_in
from hectogpt.lab.statistics import LEAST_DIFFERENCE
from hectogpt.lab.tracks import TRACKS, Taken, rules_broken
from hectogpt.process import revision
from hectogpt.serialization import dump
from hectogpt.signals import WORDS, code_of
from hectogpt.training.evaluate import SEQ_LEN
from hectogpt.training.run import Data

RULES = TRACKS["closed"]  # except steps and tokens, which are the base's
MOST_NUMBERS = RULES.parameters or 0  # values in all weights and buffers
ROWS = 32  # rows of the test text that are dealt at the same time
MOST_ROWS = 64  # per seed
NOISE = LEAST_DIFFERENCE / 4  # nats; the standard error of a seed's gain must be smaller
AGAIN = 2  # rows that are dealt again, one at a time
ALONE = 5e-3  # nats; mean difference that rounding in batches of different sizes may cause
MOST_SEEDS = 12
# A training run may use this many times the CPU time of the base's run, plus SLACK seconds.
# Otherwise, text that is read once could be trained on many times.
MOST_TIMES = 3
SLACK = 10
SAME_BITS = "gives the same bits again"
ACROSS_MACHINES = 0.02  # nats; a loss may differ by this, because SOAP amplifies rounding
# Environment variables that the processes get.
ENVIRONMENT = ("PATH", "LANG", "LD_LIBRARY_PATH", "CXX", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")


class EndedError(Exception):
    """The idea breaks a rule or cannot be run, or a check failed; the message says which."""


@dataclass(frozen=True)
class Trained:
    """The results of a training run.

    `facts` are fields of the trial, measured from outside. `weights` are in safetensors' format;
    None if the run diverged.
    """

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
    tell: Note = lambda _: None,
) -> Judgement:
    """Judge an idea until its gains decide, or the minutes or seeds are used up.

    Args:
        entrant: the idea and its base.
        corpora: the texts.
        out: a new .jsonl file for the record, or a folder to put it in.
        minutes: the time limit.
        most_seeds: the largest number of seeds.
        threads: threads of a training run; 0 takes the physical cores, at most two.
        tell: called with one line per event; the first contains the hash that the record commits
            to.

    Raises UserError if the base cannot be trained or the record exists already, and UserError
    (STORAGE) if the record cannot be written. Ctrl-C stops the judgement; the verdict on the seeds
    so far is then written.
    """
    at = datetime.now(UTC)
    secret = secrets.token_hex(32)
    if out.suffix != ".jsonl":
        out /= f"{entrant.idea.replace('.py:', '-')}-{at:%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"
    if out.exists():
        raise UserError(f"{out} exists", fix=SetTo("out", "another name"))
    texts = {short_name(corpus.name): corpus for corpus in corpora}
    about = {
        "protocol": 2,
        "sealed": sandbox.bubblewrap() is not None,
        "corpora": {name: corpus.sha256 for name, corpus in texts.items()},
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
    """A running judgement. Its record already has the first line.

    Attributes:
        runs: "base" and "idea" -> the fields of the arm's run, of its model and of its data, as
            the arm's first process described them, and `tokens`, the number of its tokens.
        processor: the most CPU seconds that a training run of the base has used.
    """

    def __init__(
        self, corpora: dict[str, Corpus], record: Judgement, secret: str, tell: Note
    ) -> None:
        self.corpora = corpora
        self.record = record
        self.secret = secret
        self.tell = tell
        self.runs: dict[str, dict[str, Any]] = {}
        self.processor = 0.0
        find()  # compile the kernels once, here
        self.policy = sandbox.python_policy(str(files.cache_dir() / "kernels"))

    def finish(self, seconds: float, most_seeds: int) -> None:
        """Run the seeds and write the verdict."""
        try:
            self.end(self.run_seeds(seconds, most_seeds))
        except EndedError as error:
            self.end("", str(error)[:3000])

    def end(self, ended: str, *reasons: str) -> None:
        """Write the verdict.

        Args:
            ended: why no more seeds follow.
            reasons: why the idea is refused or dishonest.
        """
        verdict = {"word": self.record.decided(reasons), "reasons": reasons, "ended": ended}
        self.record.write("verdict", verdict | {"secret": self.secret})

    def run_seeds(self, seconds: float, most_seeds: int) -> str:
        """Train and score seed by seed, and return the reason for stopping. Raises EndedError."""
        begun = time.monotonic()
        slowest = 0.0
        self.check("carries no weights", *weights_in(self.record.entrant.source))
        for number in range(most_seeds):
            at = time.monotonic()
            if number and at - begun + slowest > seconds:
                return f"one more seed would exceed the {seconds / 60:g} minutes"
            # Written together, so that a verdict covers only complete seeds.
            for trial in [one for name in self.corpora for one in self.trials(name, number)]:
                self.record.write("trial", trial)
            slowest = max(slowest, time.monotonic() - at)
            if self.record.decided() != "unproven":
                return "decided"
        return "no more seeds were asked for"

    def trials(self, corpus: str, number: int) -> list[dict[str, Any]]:
        """Train both arms with a seed, and score both on the same rows.

        The rows are drawn after training, and scored group by group until the noise of the gain is
        small. Returns the fields of both trials.
        """
        text = self.corpora[corpus]
        seed = draw_seed(self.secret, number)
        trained = {arm: self.train(arm, seed, text) for arm in ARMS}
        if SAME_BITS not in self.record.checks:
            self.check_bits(seed, text, trained["idea"])
        rows = self.draw_rows(corpus, number)
        scored = []
        for group in np.split(rows, range(ROWS, len(rows), ROWS)):
            scored.append(self.score(seed, trained, group))
            losses = np.concatenate(scored, axis=1)
            if are_enough((losses[0] - losses[1]).mean(axis=1)):
                break
        count = losses.shape[1]
        order = draw(self.secret, f"alone {corpus} {number}").permutation(count)[:AGAIN]
        self.check_alone(seed, trained["idea"], rows[order], losses[1, order])
        trials = []
        for arm, loss in zip(ARMS, losses.mean(axis=(1, 2)).tolist(), strict=True):
            about = {"arm": arm, "corpus": corpus, "seed": seed, "loss": loss, "rows": count}
            facts = trained[arm].facts
            trials.append(about | facts)
            self.tell(f"{corpus}, seed {number + 1}, {arm}: loss {loss:.4f}, {facts['seconds']} s")
        return trials

    # --- the processes

    @contextmanager
    def process(self, arm: str, task: str, seed: int, **more: Any) -> Iterator[Talk]:
        """Context manager: start a task in a new process and check the run that it describes.

        After the block, the process must end properly. If it does not, or if an answer is invalid,
        this raises EndedError for the idea's process and UserError for the base's.
        """
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {"HOME": "/tmp", "HECTOGPT_CACHE": str(files.cache_dir())}
        entrant = self.record.entrant
        request = {"task": task, "seed": seed, "links": entrant.links(arm)}
        request |= {"threads": self.record.begin["threads"]} | more
        talk = Talk(request, environment, self.policy, 8 * MOST_NUMBERS)
        with closing(talk.messages), self.blame(arm, task, talk):
            self.check_run(arm, talk.receive()[0])
            yield talk
            attempts = talk.finish()
        if arm == "idea":
            self.check("stays in its sandbox", attempts)

    @contextmanager
    def blame(self, arm: str, task: str, talk: Talk) -> Iterator[None]:
        """Context manager: blame an error in the block on the arm's answers.

        Raises EndedError for the idea and UserError for the base.
        """
        try:
            yield
        except (EndedError, UserError):
            raise
        except Exception as error:  # any error that the arm's answers cause here
            why = talk.fault(error)
            if arm == "base":
                base = self.record.entrant.base
                raise UserError(f"{base} cannot serve as the base", why=why) from error
            raise EndedError(f"it cannot {task}: {why}") from error

    def train(self, arm: str, seed: int, text: Corpus) -> Trained:
        """Train an arm on text that is dealt to it, and return its weights.

        The weights stay in memory: they are never written to a file.
        """
        with self.process(arm, "train", seed) as talk:
            batches = self.plan(arm, seed, text.tokens["train"].astype(np.uint16))
            talk.deal(np.unique(batches))
            begun = time.monotonic()
            before = talk.measure()
            for batch in batches:
                talk.deal(batch)
                diverged = "diverged" in talk.receive()[0]
                seconds = time.monotonic() - begun
                processor = talk.measure() - before
                if diverged:
                    break
                self.check_rules(arm, seconds=seconds)
                if arm == "idea" and processor > MOST_TIMES * self.processor + SLACK:
                    times = f"{MOST_TIMES} times the processor time of its base"
                    raise EndedError(f"training takes more than {times}")
            facts = {"seconds": round(seconds, 2), "peak_mb": round(talk.peak_mb)}
            if diverged:
                return Trained(facts | {"diverged": True})
            numbers, weights = clean_weights(talk.receive()[1])
            self.check_rules(arm, params=numbers)
        if arm == "base":
            self.processor = max(self.processor, processor)
        return Trained(facts | {"params": numbers}, weights)

    def plan(self, arm: str, seed: int, tokens: np.ndarray) -> np.ndarray:
        """The rows of each step, uint16 [steps, batch * tokens].

        If the idea has its own data order, a process that has the whole text computes that order,
        and returns nothing else.
        """
        run = self.runs[arm]
        size = run["seq_len"]
        if run["order"] == dump(Shuffled()):
            data = Data(batch_size=run["batch_size"], seq_len=size)
            numbers = planned(tokens, data, seed, run["steps"])
        else:
            with self.process(arm, "plan", seed) as talk:
                talk.deal(tokens)
                numbers = np.frombuffer(talk.receive()[1], np.int64)
        sequences = tokens[: len(tokens) // size * size].reshape(-1, size)
        often = int(np.bincount(numbers).max())
        most = -(-len(numbers) // len(sequences))
        if arm == "idea" and often > most:
            twice = f"a row of training text is read {often} times; limit: {most}"
            raise EndedError(twice)
        return sequences[numbers].reshape(run["steps"], run["batch_size"] * size)

    def score(
        self, seed: int, trained: dict[str, Trained], rows: np.ndarray, width: int = ROWS
    ) -> np.ndarray:
        """Deal rows of test tokens to new processes with the weights, and compute their losses.

        All arms are dealt a token before any of them is dealt the next one.

        Args:
            seed: the seed of the training runs.
            trained: arm -> its weights.
            rows: [rows, tokens + 1].
            width: how many rows are dealt at a time.

        Returns float64 [arms, rows, tokens], computed from the returned distributions. An arm
        that diverged gets the losses of a uniform guess.
        """
        vocab = self.runs["base"]["vocab_size"]
        shape = (len(rows), rows.shape[1] - 1)
        losses = {arm: np.full(shape, math.log(vocab)) for arm in trained}
        groups = np.split(np.arange(len(rows)), range(width, len(rows), width))
        threads = max(1, self.record.begin["threads"] // len(trained))
        more = {"tokens": shape[1], "deals": len(groups), "threads": threads}
        with ExitStack() as processes:
            talks = {}
            for arm, result in trained.items():
                if result.weights is not None:
                    talks[arm] = processes.enter_context(self.process(arm, "score", seed, **more))
                    talks[arm].deal(result.weights)
            for group in groups:
                dealt = rows[group].T.astype(np.int64)
                for talk in talks.values():
                    talk.deal(dealt[0])
                for place, targets in enumerate(dealt[1:]):
                    answers = {}
                    for arm, talk in talks.items():
                        with self.blame(arm, "score", talk):
                            answers[arm] = talk.receive()[1]
                    if place + 1 < shape[1]:
                        for talk in talks.values():
                            talk.deal(targets)  # they compute while the judge reads these answers
                    for arm, answer in answers.items():
                        with self.blame(arm, "score", talks[arm]):
                            losses[arm][group, place] = nats(answer, vocab, targets)
        return np.stack(list(losses.values()))

    def draw_rows(self, corpus: str, number: int) -> np.ndarray:
        """Draw rows of the test text for a seed, [rows, tokens + 1].

        Neighbouring rows share one token. No row is drawn again for a later seed before all have
        been drawn.
        """
        tokens = self.corpora[corpus].tokens["test"]
        context = max(run["context_length"] for run in self.runs.values())
        size = min(SEQ_LEN, context, len(tokens) - 1)
        count = (len(tokens) - 1) // size
        order = draw(self.secret, f"rows {corpus}").permutation(count)
        most = min(MOST_ROWS, count)
        chosen = np.take(order, np.arange(number * most, (number + 1) * most), mode="wrap")
        rows: np.ndarray = tokens[chosen[:, None] * size + np.arange(size + 1)]
        return rows

    # --- the checks

    def check(self, name: str, fault: str, seen: str = "") -> None:
        """Record a check. One that passes is recorded only once.

        Args:
            name: the check.
            fault: the problem; "" if it passes.
            seen: what was measured.

        Raises EndedError if there is a fault.
        """
        if fault or name not in self.record.checks:
            facts = {"name": name, "passed": not fault, "seen": (fault or seen)[:2000]}
            self.record.write("check", facts)
        if fault:
            raise EndedError(f"{name}: {fault}")

    def check_run(self, arm: str, run: dict[str, Any]) -> None:
        """Check that the run is the same in every process and, for an idea, keeps the rules.

        Raises ValueError for an invalid description.
        """
        run = {**run["model"], **run["data"], **run}
        numbers = ("steps", "batch_size", "seq_len", "context_length", "vocab_size")
        if not all(type(run[name]) is int and run[name] > 0 for name in numbers):
            raise ValueError(f"not a run: {run!r:.200}")
        run["tokens"] = run["steps"] * run["batch_size"] * run["seq_len"]
        same = self.runs.setdefault(arm, run) == run
        if arm == "idea":
            fault = "" if same else "another process got a different run"
            self.check("is the same run each time", fault)
        self.check_rules(arm)

    def check_rules(self, arm: str, **costs: Any) -> None:
        """Check that an idea keeps RULES with its base's steps and tokens. Raises EndedError."""
        if arm == "idea":
            base = self.runs["base"]
            run = self.runs["idea"]
            rules = replace(RULES, steps=base["steps"], tokens=base["tokens"])
            if broken := rules_broken(rules, Taken(run["steps"], run["tokens"], **costs)):
                raise EndedError("; ".join(broken))

    def check_bits(self, seed: int, text: Corpus, trained: Trained) -> None:
        """Check that a second training run with the same seed gives the same weights."""
        same = self.train("idea", seed, text).weights == trained.weights
        self.check(SAME_BITS, "" if same else "a second process has different weights")

    def check_alone(
        self, seed: int, trained: Trained, rows: np.ndarray, losses: np.ndarray
    ) -> None:
        """Check that rows that are dealt alone have the same losses as among other rows."""
        again = self.score(seed, {"idea": trained}, rows, width=1)[0]
        apart = float(np.abs(again - losses).mean(axis=1).max())
        seen = f"{losses.mean():.4f} nats with other rows, {again.mean():.4f} alone ({apart:.1e})"
        self.check("scores each row by itself", seen if apart > ALONE else "", seen)


def are_enough(gains: np.ndarray) -> bool:
    """True if the mean gain of these rows has a standard error below NOISE."""
    return bool(gains.std() < NOISE * len(gains) ** 0.5)


# --- repeating a judgement


@dataclass(frozen=True)
class Replay:
    """The results of repeating a judgement.

    Attributes:
        faults: sentences on the differences that are too large.
        largest: the largest difference of a loss, in nats.
        again: the record of the second judgement.
    """

    faults: list[str]
    largest: float
    again: Judgement


def replay(judgement: Judgement, corpora: Sequence[Corpus], tell: Note, folder: Path) -> Replay:
    """Repeat a judgement in `folder`, with the source and the secret of its record.

    Raises UserError if the record has no verdict or a different protocol, or if the texts are not
    those that were judged.
    """
    begin = judgement.begin
    secret = judgement.secret or ""
    texts = {short_name(corpus.name): corpus for corpus in corpora}
    why = ""
    if not secret or begin.get("protocol") != 2:
        why = "it was not finished, or was judged by the first protocol"
    elif {name: corpus.sha256 for name, corpus in texts.items()} != begin["corpora"]:
        why = f"different texts were judged: {' and '.join(begin['corpora'])}"
    if why:
        raise UserError(f"{judgement.path} cannot be replayed", why=why)
    again = Judgement(folder / "record.jsonl")
    again.write("begin", begin | {"sealed": sandbox.bubblewrap() is not None})
    # A verdict with reasons was reached during one more seed, whose trials were not recorded.
    seeds = len(judgement.gains()) + bool(judgement.reasons)
    Judging(texts, again, secret, tell).finish(math.inf, max(seeds, 1))
    return differences(judgement, again)


def differences(judgement: Judgement, again: Judgement) -> Replay:
    """Compare a judgement with the one that repeats it."""
    faults = []
    largest = 0.0
    if again.word != judgement.word:
        faults.append(f"the verdict is {again.word}, but the record says {judgement.word}")
    for key, trial in judgement.trials.items():
        loss = again.trials.get(key, {}).get("loss", math.nan)
        apart = abs(trial["loss"] - loss)
        largest = max(largest, apart)
        if not apart <= ACROSS_MACHINES:
            place = "{}, seed {}, {}".format(*key)
            faults.append(f"{place}: loss {loss:.6f}, the record has {trial['loss']:.6f}")
    return Replay(faults, largest, again)
