"""The judge of an idea: it never runs the idea's code and believes nothing that the idea says. It asks, and checks.

For every seed, drawn from a secret, and every corpus the base and the idea train in processes of their own
(lab/contestant.py), which have the training text and no other. A second process scores the test text with the saved
weights. A third one knows the weights alone: it is given beginnings of rows, up to positions that were drawn after the
scores were in, and answers with the probabilities of all tokens. They must sum to one and give the next token the loss
that was reported. So a loss that is invented, that needs the future, or that belongs to no distribution is found out,
by whatever means it came about.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import __version__, hardware
from hectogpt.data import Corpus
from hectogpt.errors import UserError, set_to
from hectogpt.kernels.build import find
from hectogpt.lab.compare import short_name
from hectogpt.lab.contestant import EARLY
from hectogpt.lab.judgement import (
    Entrant,
    Judgement,
    draw_positions,
    draw_seed,
    hash_of,
    rules_broken,
    weights_in_source,
)
from hectogpt.process import Child, revision
from hectogpt.signals import WORDS, code_of
from hectogpt.training.evaluate import SEQ_LEN

QUESTIONS = 256  # for each trial of the idea
SUM_TOLERANCE = 1e-3  # of the sum of probabilities; they are float32
LOSS_TOLERANCE = 5e-3  # nats, between a score in a batch of rows and an answer by itself
MOST_SEEDS = 12
SAME_MACHINE = 1e-6  # nats that a replayed loss may differ by
ACROSS_MACHINES = 0.02  # where processor or version are others: SOAP enlarges how sums are rounded
HANGS = 900.0  # seconds without a message
# Variables that its processes have.
ENVIRONMENT = [
    *("PATH", "HOME", "LANG", "LD_LIBRARY_PATH"),
    *("HECTOGPT_CACHE", "XDG_CACHE_HOME", "OMP_NUM_THREADS", "GOMP_SPINCOUNT"),
]
Tell = Callable[[str], None]


class EndedError(Exception):
    """The judgement is over. word: "refused" (the idea breaks a rule, or cannot be run) or "dishonest" (a check
    failed). Its text says why."""

    def __init__(self, word: str, why: str) -> None:
        super().__init__(why)
        self.word = word


@dataclass
class Answers:
    """The messages of a contestant's process, and what was seen of it from outside."""

    values: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    peak_mb: float = 0.0


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
    """Judge an idea until its gains decide, the minutes are over or the seeds are. out: the record, which grows, or a
    folder for it. tell: is given a line at each event.

    Raises UserError: for a base that cannot be trained, STORAGE for a record that cannot be written. Ctrl-C ends it
    with the verdict of the trials so far.
    """
    at, secret = datetime.now(UTC), secrets.token_hex(32)
    if out.suffix != ".jsonl":
        out /= f"{entrant.idea.replace('.py:', '-')}-{at:%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"
    if out.exists():
        raise UserError(f"{out} exists", why="a judgement has a record of its own", fix=set_to("out", "another name"))
    texts = {short_name(corpus.name): corpus for corpus in corpora}
    about = {
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
    record = Judgement(out)
    record.write("begin", asdict(entrant) | about)
    judging = Judging(texts, record, secret, tell)
    try:
        judging.finish(minutes * 60, most_seeds)
    except KeyboardInterrupt as stop:
        judging.end(WORDS[code_of(stop)])
    return record


class Judging:
    """A judgement under way, whose record has its first line. runs: "base" and "idea" -> its run, as its first process
    said."""

    def __init__(self, corpora: dict[str, Corpus], record: Judgement, secret: str, tell: Tell) -> None:
        self.corpora, self.record, self.secret, self.tell = corpora, record, secret, tell
        self.entrant = Entrant(**{one.name: record.begin[one.name] for one in fields(Entrant)})
        self.runs: dict[str, dict[str, Any]] = {}

    def finish(self, seconds: float, most_seeds: int) -> None:
        """Run the seeds and write the verdict."""
        find()  # the kernels are compiled once, here
        try:
            self.end(self.run_seeds(seconds, most_seeds))
        except EndedError as error:
            self.end("", error.word, str(error))

    def end(self, ended: str, word: str = "", *reasons: str) -> None:
        """Write the verdict. ended: why there are no more seeds. word: that of an EndedError."""
        facts = {"word": word or self.record.decided(), "reasons": reasons, "ended": ended, "secret": self.secret}
        self.record.write("verdict", facts)

    def run_seeds(self, seconds: float, most_seeds: int) -> str:
        """Train, score and ask, seed by seed. Returns why it ended. Raises EndedError."""
        begun, slowest = time.monotonic(), 0.0
        self.check("carries no weights", *weights_in_source(self.entrant.source))
        for number in range(most_seeds):
            if number and time.monotonic() - begun + slowest > seconds:
                return f"the {seconds / 60:g} minutes have no room for another seed"
            at, seed = time.monotonic(), draw_seed(self.secret, number)
            for corpus in self.corpora:
                for arm in ("base", "idea"):
                    self.record.write("trial", self.trial(arm, corpus, seed, number))
            slowest = max(slowest, time.monotonic() - at)
            if self.record.decided() != "unproven":
                return f"decided after {number + 1} seed{'s' * bool(number)}"
        return f"all of {most_seeds} seeds are run"

    def trial(self, arm: str, corpus: str, seed: int, number: int) -> dict[str, Any]:
        """Train one arm, score it and, if it is the idea, ask it. The fields of the trial."""
        text = self.corpora[corpus]
        with self.task(arm, "train", seed, text, {"train.npy": text.tokens["train"]}) as (folder, trained):
            if arm == "idea":
                self.check_steps(trained)
            if arm == "idea" and not number and corpus == next(iter(self.corpora)):
                self.check_again(seed, text, trained)
            about = {"arm": arm, "corpus": corpus, "seed": seed, "seconds": round(trained.seconds, 2)}
            about |= {"peak_mb": round(trained.peak_mb), "params": trained.values.get("params")}
            if "diverged" in trained.values:
                return about | {"loss": math.log(self.runs[arm]["model"]["vocab_size"]), "diverged": True}
            weights = folder / "model.safetensors"
            losses = self.score(arm, weights, seed, text)
            if arm == "idea":
                self.ask(weights, seed, text, losses, f"{corpus} {number}")
            loss = float(losses.mean())
            self.tell(f"{corpus}, seed {number + 1}, {arm}: test loss {loss:.4f}, {trained.seconds:.1f} s")
            return about | {"loss": loss, "early": trained.values.get("early")}

    # --- the processes ---

    @contextmanager
    def task(
        self,
        arm: str,
        task: str,
        seed: int,
        text: Corpus,
        arrays: dict[str, np.ndarray],
        weights: Path | None = None,
        stop: int | None = None,
    ) -> Iterator[tuple[Path, Answers]]:
        """Do a task in a new process. Its folder, which is gone afterwards, has the files of the arm and these arrays
        and weights. Raises EndedError if the idea's process ends by an error, UserError if the base's."""
        with tempfile.TemporaryDirectory(prefix="judge-", ignore_cleanup_errors=True) as name:
            folder = Path(os.path.realpath(name))
            self.entrant.write_files(folder, arm)
            for file, array in arrays.items():
                np.save(folder / file, array)
            if weights is not None:
                shutil.copy(weights, folder)
            yield folder, self.answers(arm, folder, text, {"task": task, "seed": seed, "stop": stop})

    def answers(self, arm: str, folder: Path, text: Corpus, request: dict[str, Any]) -> Answers:
        """What a new process answers, checked as far as any process can be."""
        answers, begun = Answers(), time.monotonic()
        base, task = self.entrant.base, request["task"]
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        child = Child("hectogpt.lab.contestant", folder, environment)

        def receive(message: dict[str, Any], _: bytes) -> None:
            nonlocal begun
            if "begins" in message:
                begun = time.monotonic()
            if "loss" in message:
                answers.losses.append(message["loss"])
            answers.values |= message
            if arm == "idea" and (broken := rules_broken(answers.values, self.runs["base"], text, answers.seconds)):
                raise EndedError("refused", "; ".join(broken))
            if message.keys() & {"step", "begins", "trained"}:
                answers.seconds = time.monotonic() - begun
                answers.peak_mb = max(answers.peak_mb, hardware.resident_memory_mb(child.process.pid))

        request |= {"folder": str(folder), "recipe": base if arm == "base" else f"{self.entrant.idea}@{base}"}
        request |= {"threads": self.record.begin["threads"]}
        ending = child.listen(request, receive, first_seconds=HANGS, seconds=HANGS)
        if ending.code != 0 or "attempts" not in answers.values:
            how = ending.last_words or f"its process ended ({ending.how}, exit code {ending.code})"
            if arm == "base":
                raise UserError(f"{base} cannot be judged against", why=how)
            raise EndedError("refused", f"it cannot {task}: {how}")
        run = {name: value for name, value in answers.values["run"].items() if name != "seed"}
        same = self.runs.setdefault(arm, run) == run
        if arm == "idea":
            self.check("is the same run each time", "" if same else "another process got another run")
            seen = f"to {task} it opens {', '.join(answers.values['opened']) or 'nothing'}"
            self.check("reads its file and the training text alone", "; ".join(answers.values["attempts"]), seen)
        return answers

    # --- the checks ---

    def check(self, name: str, fault: str, seen: str = "") -> None:
        """Write a check to the record: what is wrong, "" if nothing is; once if it passes. Raises EndedError for a
        fault."""
        if fault or all(check["name"] != name for check in self.record.checks):
            self.record.write("check", {"name": name, "passed": not fault, "seen": (fault or seen)[:2000]})
        if fault:
            raise EndedError("dishonest", f"{name}: {fault}")

    def check_steps(self, trained: Answers) -> None:
        """The run did what it says."""
        run = trained.values["run"]
        steps, counted = len(trained.losses), int(trained.values["tokens"])
        announced = run["steps"] * run["data"]["batch_size"] * run["data"]["seq_len"]
        seen = f"{steps} steps, {counted:,} tokens with gradients; announced {run['steps']} and {announced:,}"
        complete = "diverged" in trained.values or steps == run["steps"]
        name = "takes the steps and tokens that it announces"
        self.check(name, "" if complete and counted <= announced else seen, seen)

    def check_again(self, seed: int, text: Corpus, trained: Answers) -> None:
        """The first steps once more, later, in another folder: the same losses and weights."""
        with self.task("idea", "train", seed, text, {"train.npy": text.tokens["train"]}, stop=EARLY) as (_, again):
            same = again.values.get("early") == trained.values.get("early")
            same = same and again.losses == trained.losses[: len(again.losses)]
        self.check("gives the same bits again", "" if same else f"step {EARLY} is another one in a second process")

    def score(self, arm: str, weights: Path, seed: int, text: Corpus) -> np.ndarray:
        """float64 [tokens - 1]: the loss of each test token after the first, by a process that has the weights and the
        test text."""
        tokens = text.tokens["test"]
        with self.task(arm, "score", seed, text, {"rows.npy": tokens}, weights) as (folder, _):
            losses = load_array(folder / "losses.npy")
        sound = losses.shape == (len(tokens) - 1,) and bool(np.isfinite(losses).all())
        if not sound and arm == "base":
            raise UserError(f"{self.entrant.base} gave no scores", why=f"{losses.size} numbers for the test text")
        fault = "" if sound else f"{losses.size} numbers for {len(tokens) - 1} tokens, or one not finite"
        self.check("scores every token of the test text", fault)
        return losses

    def ask(self, weights: Path, seed: int, text: Corpus, losses: np.ndarray, what: str) -> None:
        """Ask what follows beginnings of rows, and compare with what was reported."""
        tokens, model = text.tokens["test"], self.runs["idea"]["model"]
        seq_len = min(SEQ_LEN, model["context_length"], len(tokens) - 1)
        positions = draw_positions(self.secret, what, len(losses), QUESTIONS)
        texts = [tokens[p - p % seq_len : p + 1] for p in positions]
        asked = {"texts.npy": np.concatenate(texts), "ends.npy": np.cumsum([len(text) for text in texts])}
        with self.task("idea", "answer", seed, text, asked, weights) as (folder, _):
            log_probs = load_array(folder / "log_probs.npy").astype(np.float64)
        shape = (len(positions), model["vocab_size"])
        off = float(np.abs(np.exp(log_probs).sum(axis=-1) - 1).max()) if log_probs.shape == shape else math.inf
        seen = f"{len(positions)} distributions, off by at most {off:.1e}"
        self.check("gives probabilities that sum to one", "" if off < SUM_TOLERANCE else seen, seen)
        own = -log_probs[np.arange(len(positions)), tokens[positions + 1]]
        apart = np.abs(own - losses[positions])
        seen = f"{len(positions)} questions, largest difference {apart.max():.1e} nats"
        wrong = int((~(apart < LOSS_TOLERANCE)).sum())
        means = f"{losses[positions].mean():.3f} reported, {own.mean():.3f} when asked"
        fault = f"{wrong} of {len(positions)} reported losses are not those of its own probabilities: {means}"
        self.check("reports the loss of its own probabilities, without the future", fault if wrong else "", seen)


def load_array(path: Path) -> np.ndarray:
    """An array that a process wrote; an empty one for what is none."""
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.zeros(0)
    return array


def replay(judgement: Judgement, corpora: Sequence[Corpus], tell: Tell) -> list[str]:
    """Do a judgement again, with the source, seeds and questions of its record. Returns what does not hold, in words;
    [] if all does. On another machine or version a loss may differ by ACROSS_MACHINES.

    Raises UserError for a record without a verdict, and for a text that is not the one that was judged.
    """
    begin, secret = judgement.begin, judgement.secret
    if secret is None:
        raise UserError(f"{judgement.path} has no verdict", why="it was not finished, and its secret is not known")
    texts = {short_name(corpus.name): corpus for corpus in corpora}
    if {name: corpus.sha256 for name, corpus in texts.items()} != begin["corpus_sha256"]:
        raise UserError("these are not the texts that were judged", why=f"they were {', '.join(begin['corpora'])}")
    same = (begin["version"], begin["machine"]) == (__version__, hardware.cpu_name())
    tolerance = SAME_MACHINE if same else ACROSS_MACHINES
    whole = len({trial["seed"] for trial in judgement.trials}) if judgement.reasons else len(judgement.gains())
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        again = Judgement(Path(folder, "record.jsonl"))
        again.write("begin", begin)
        Judging(texts, again, secret, tell).finish(math.inf, whole or 1)
    found = [] if again.word == judgement.word else [f"the verdict is {again.word}, the record says {judgement.word}"]
    for old, new in zip(judgement.trials, again.trials, strict=False):
        if abs(old["loss"] - new["loss"]) > tolerance:
            place = f"{old['corpus']}, seed {old['seed']}, {old['arm']}"
            found.append(f"{place}: loss {new['loss']:.6f}, the record has {old['loss']:.6f}")
    return found
