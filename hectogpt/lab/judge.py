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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import __version__, files, hardware, sandbox
from hectogpt.data import Batches, Corpus
from hectogpt.data.batches import Shuffled
from hectogpt.errors import UserError, set_to
from hectogpt.kernels.build import find
from hectogpt.lab.compare import short_name
from hectogpt.lab.contestant import planned
from hectogpt.lab.judgement import (
    ARMS,
    Entrant,
    Judgement,
    draw,
    draw_seed,
    hash_of,
    weights_in_source,
)
from hectogpt.lab.statistics import LEAST_DIFFERENCE
from hectogpt.lab.tracks import TRACKS, Taken, rules_broken
from hectogpt.process import Child, revision
from hectogpt.serialization import dump
from hectogpt.signals import WORDS, code_of
from hectogpt.training.evaluate import SEQ_LEN

RULES = TRACKS["closed"]  # with the steps and tokens of the base
ROWS = 32
MOST_ROWS = 64  # of the test text, dealt side by side, and in all for a trial
NOISE = LEAST_DIFFERENCE / 4  # nats: standard error of a seed's gain over the rows that are drawn
AGAIN = 2  # rows that are dealt again, each alone
ALONE = 5e-3  # nats, mean difference: batches of another size round otherwise
MOST_SEEDS = 12
# Times the processor time of the base's training, and seconds beside: text can be read once and
# computed with often.
MOST_TIMES = 3.0
SLACK = 10.0
EQUAL = 1e-6  # nats that a loss may differ by on the same processor
ACROSS_MACHINES = 0.02  # on another one: SOAP enlarges how sums are rounded
HANGS = 300.0  # seconds without a message
DTYPES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "uint8": 1,
    "bool": 1,
}
MOST_TENSORS = 10_000
MOST_NUMBERS = RULES.parameters or 0  # of all weights, buffers too
# Variables that its processes have.
ENVIRONMENT = ("PATH", "LANG", "LD_LIBRARY_PATH", "CXX", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
Tell = Callable[[str], None]


class SilentError(Exception):
    """A process has ended instead of answering. Its text says how."""


class EndedError(Exception):
    """The judgement is over. word: "refused" (the idea breaks a rule, or cannot be run) or
    "dishonest" (a check failed). Its text says why."""

    def __init__(self, word: str, why: str) -> None:
        super().__init__(why[:3000])
        self.word = word


@dataclass
class Talk:
    """A conversation with the process of an arm.

    Attributes:
        run: its run, as `dump` writes it.
        peak_mb, processor: the most memory, and the processor time, that were seen from outside.
    """

    child: Child
    frames: Generator[tuple[dict[str, Any], bytes], None, None]
    run: dict[str, Any] = field(default_factory=dict)
    peak_mb: float = 0.0
    processor: float = 0.0

    def send(self, numbers: np.ndarray | bytes) -> None:
        """Send numbers without a word."""
        self.child.send({}, numbers if isinstance(numbers, bytes) else numbers.tobytes())

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """The next message and its body. Raises SilentError if the process has ended instead."""
        for frame in self.frames:
            return frame
        raise SilentError(self.how_it_ended())

    def finish(self) -> list[Any]:
        """The attempts to leave the sandbox, once the process has ended well. Raises SilentError
        if it has not."""
        attempts: list[Any] = self.receive()[0]["attempts"]
        for message, _ in self.frames:
            raise ValueError(f"more than was asked: {message!r:.100}")
        if self.child.ending is None or self.child.ending.code != 0:
            raise SilentError(self.how_it_ended())
        return attempts

    def how_it_ended(self) -> str:
        """The last words of the process, or its exit code."""
        ending = self.child.ending
        assert ending is not None
        return (
            ending.last_words[-2000:]
            or f"its process ended ({ending.how}, exit code {ending.code})"
        )

    def measure(self) -> None:
        """Look at its memory and processor time."""
        self.peak_mb = max(self.peak_mb, hardware.resident_memory_mb(self.child.process.pid))
        self.processor = max(self.processor, hardware.processor_seconds(self.child.process.pid))


@dataclass(frozen=True)
class Trained:
    """What came of a training, as seen from outside.

    Attributes:
        losses: what the process reports of each step; compared with a second training, and not
            believed.
        processor: seconds of processor time.
        weights: the bytes of all tensors, None if the training diverged.
        tensors: name, dtype and shape of each.
    """

    run: dict[str, Any]
    losses: list[Any]
    seconds: float
    processor: float
    peak_mb: float
    tensors: list[Any] = field(default_factory=list)
    weights: bytes | None = None

    @property
    def params(self) -> int:
        """How many numbers the weights are, buffers too."""
        return sum(math.prod(shape) for _, _, shape in self.tensors)

    @property
    def sha256(self) -> str:
        """The hash of the weights."""
        return hashlib.sha256(repr(self.tensors).encode() + (self.weights or b"")).hexdigest()


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
    written. Ctrl-C ends it with the verdict of the trials so far."""
    at = datetime.now(UTC)
    secret = secrets.token_hex(32)
    if out.suffix != ".jsonl":
        out /= f"{entrant.idea.replace('.py:', '-')}-{at:%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"
    if out.exists():
        raise UserError(
            f"{out} exists",
            why="a judgement has a record of its own",
            fix=set_to("out", "another name"),
        )
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
        runs: "base" and "idea" -> its run, as its first process said.
        processor: seconds of processor time that a training of the base has taken at most.
        rows: corpus -> how many rows to deal, once the first seed has told; known before when a
            record is replayed.
    """

    def __init__(
        self,
        corpora: dict[str, Corpus],
        record: Judgement,
        secret: str,
        tell: Tell,
        rows: Mapping[str, int] | None = None,
    ) -> None:
        self.corpora = corpora
        self.record = record
        self.secret = secret
        self.tell = tell
        self.rows = dict(rows or {})
        self.entrant = Entrant(**{one.name: record.begin[one.name] for one in fields(Entrant)})
        self.runs: dict[str, dict[str, Any]] = {}
        self.processor = 0.0
        find()  # the kernels are compiled once, here
        self.policy = sandbox.python_policy([files.cache_dir() / "kernels"])

    def finish(self, seconds: float, most_seeds: int) -> None:
        """Run the seeds and write the verdict."""
        try:
            self.end(self.run_seeds(seconds, most_seeds))
        except EndedError as error:
            self.end("", error.word, str(error))

    def end(self, ended: str, word: str = "", *reasons: str) -> None:
        """Write the verdict. ended: why there are no more seeds. word: that of an EndedError."""
        facts = {
            "word": word or self.record.decided(),
            "reasons": reasons,
            "ended": ended,
            "secret": self.secret,
        }
        self.record.write("verdict", facts)

    def run_seeds(self, seconds: float, most_seeds: int) -> str:
        """Train and score, seed by seed. Returns why it ended. Raises EndedError."""
        begun = time.monotonic()
        slowest = 0.0
        self.check("carries no weights", *weights_in_source(self.entrant.source))
        for number in range(most_seeds):
            if number and time.monotonic() - begun + slowest > seconds:
                return f"the {seconds / 60:g} minutes have no room for another seed"
            at = time.monotonic()
            for corpus in self.corpora:
                for trial in self.pair(corpus, draw_seed(self.secret, number), number):
                    self.record.write("trial", trial)
            slowest = max(slowest, time.monotonic() - at)
            if self.record.decided() != "unproven":
                return f"decided after {number + 1} seed{'s' if number else ''}"
        return f"all of {most_seeds} seeds are run"

    def pair(self, corpus: str, seed: int, number: int) -> list[dict[str, Any]]:
        """Train both arms with a seed, and score both on the same rows, which are drawn
        afterwards.

        Returns the fields of both trials.
        """
        text = self.corpora[corpus]
        trained = {arm: self.train(arm, seed, text) for arm in ARMS}
        if not number and corpus == next(iter(self.corpora)):
            self.check_again(self.train("idea", seed, text), trained["idea"])
        alive = [arm for arm in ARMS if trained[arm].weights is not None]
        rows = self.draw_rows(corpus, number)
        count = self.rows.get(corpus, ROWS)
        losses = {arm: self.score(arm, seed, trained[arm], rows[:count]) for arm in alive}
        if len(alive) == len(ARMS) and corpus not in self.rows:
            self.rows[corpus] = min(
                rows_for((losses["base"] - losses["idea"]).mean(axis=1)), len(rows)
            )
            if self.rows[corpus] > count:
                rest = rows[count : self.rows[corpus]]
                more = {arm: self.score(arm, seed, trained[arm], rest) for arm in alive}
                losses = {arm: np.concatenate((losses[arm], more[arm])) for arm in alive}
        if "idea" in alive:
            sample = draw(self.secret, f"alone {corpus} {number}").permutation(
                len(losses["idea"])
            )[:AGAIN]
            self.check_alone(seed, trained["idea"], rows[sample], losses["idea"][sample])
        trials = []
        for arm in ARMS:
            about = {"arm": arm, "corpus": corpus, "seed": seed, "params": trained[arm].params}
            about |= {
                "seconds": round(trained[arm].seconds, 2),
                "peak_mb": round(trained[arm].peak_mb),
            }
            about |= {"processor": round(trained[arm].processor, 2)}
            if arm in alive:
                about |= {
                    "loss": float(losses[arm].mean()),
                    "rows": len(losses[arm]),
                    "weights": trained[arm].sha256,
                }
            else:
                about |= {
                    "loss": math.log(self.runs[arm]["model"]["vocab_size"]),
                    "diverged": True,
                }
            self.tell(
                f"{corpus}, seed {number + 1}, {arm}: loss {about['loss']:.4f}, "
                f"{trained[arm].seconds:.1f} s"
            )
            trials.append(about)
        return trials

    # --- the processes ---

    @contextmanager
    def process(self, arm: str, task: str, seed: int, **more: Any) -> Iterator[Talk]:
        """Begin a task in a new process, which has said its run. After the block, see that it
        ended well.

        Raises EndedError if the idea's process ends otherwise or sends what is no answer,
        UserError if the base's."""
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {"HOME": "/tmp", "HECTOGPT_CACHE": str(files.cache_dir())}
        child = Child("hectogpt.lab.contestant", Path("/"), environment, self.policy)
        entrant = self.entrant
        request = {
            "task": task,
            "seed": seed,
            "sources": entrant.sources(arm),
            "base": entrant.base,
            **more,
        }
        request |= {
            "idea": entrant.idea if arm == "idea" else None,
            "threads": self.record.begin["threads"],
        }
        request |= {"policy": asdict(self.policy)}
        frames = child.frames(
            request, first_seconds=HANGS, seconds=HANGS, body_bytes=8 * MOST_NUMBERS
        )
        try:
            with closing(frames):
                talk = Talk(child, frames)
                talk.run = talk.receive()[0]["run"]
                self.check_run(arm, talk.run)
                yield talk
                attempts = "; ".join(map(str, talk.finish()))
        except (
            SilentError,
            LookupError,
            TypeError,
            ValueError,
            ArithmeticError,
            AttributeError,
        ) as error:
            why = (
                str(error)
                if isinstance(error, SilentError)
                else f"it sends what is no answer: {error!r:.300}"
            )
            if arm == "base":
                raise UserError(f"{entrant.base} cannot be judged against", why=why) from error
            raise EndedError("refused", f"it cannot {task}: {why}") from error
        if arm == "idea":
            self.check("stays in its sandbox", attempts)

    def train(self, arm: str, seed: int, text: Corpus) -> Trained:
        """Train an arm on text that is dealt, and take its weights, which are bytes here: never
        opened or copied as a file."""
        with self.process(arm, "train", seed) as talk:
            rows, used = self.plan(arm, seed, text, talk.run)
            talk.send(used)
            begun = time.monotonic()
            talk.measure()
            before = talk.processor
            first = talk.receive()[0]
            self.check_rules(arm, talk.run, bool(first["computes_again"]), int(first["numbers"]))
            losses: list[Any] = []
            for batch in rows:
                talk.send(batch)
                message = talk.receive()[0]
                talk.measure()
                seconds = time.monotonic() - begun
                processor = talk.processor - before
                if "diverged" in message:
                    return Trained(talk.run, losses, seconds, processor, talk.peak_mb)
                losses.append(message["loss"])
                self.check_rules(arm, talk.run, seconds=seconds)
                if arm == "idea" and processor > MOST_TIMES * self.processor + SLACK:
                    self.refuse(
                        f"training takes more than {MOST_TIMES:g} times the processor time of "
                        "its base"
                    )
            message, weights = talk.receive()
            trained = Trained(
                talk.run,
                losses,
                seconds,
                processor,
                talk.peak_mb,
                checked(message["weights"]),
                weights,
            )
            if sum(DTYPES[dtype] * math.prod(shape) for _, dtype, shape in trained.tensors) != len(
                weights
            ):
                raise ValueError("weights of another size than they say")
            self.check_rules(arm, talk.run, numbers=trained.params)
        if arm == "base":
            self.processor = max(self.processor, trained.processor)
        return trained

    def plan(
        self, arm: str, seed: int, text: Corpus, run: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What to deal: the rows of each step, uint16 [steps, batch * tokens], and the ids that
        the run reads. An order of the idea's own is asked in a process that has the whole text,
        and that nothing leaves but the order."""
        data = run["data"]
        tokens = text.tokens["train"].astype(np.uint16)
        count = int(run["steps"]) * int(data["batch_size"])
        size = int(data["seq_len"])
        if data["order"] == dump(Shuffled()):
            batches = Batches(
                tokens, size, int(data["batch_size"]), seed, Shuffled(), int(run["steps"])
            )
            numbers, used = planned(batches)
        else:
            with self.process(arm, "plan", seed) as talk:
                talk.send(tokens)
                numbers = np.frombuffer(talk.receive()[1], np.int64)
                used = np.frombuffer(talk.receive()[1], np.uint16)
        sequences = tokens[: len(tokens) // size * size].reshape(-1, size)
        if numbers.shape != (count,) or numbers.min() < 0:
            raise ValueError(f"{numbers.shape} rows planned of {count}")
        often = int(np.bincount(numbers).max())
        most = -(-count // len(sequences))
        if arm == "idea":
            fault = (
                f"a row of the training text is read {often} times, at most {most}"
                if often > most
                else ""
            )
            self.refuse(fault)
            self.check(
                "reads what it announces",
                "" if np.isin(used, sequences[numbers]).all() else "other ids",
            )
        return sequences[numbers].reshape(int(run["steps"]), -1), used

    def score(
        self, arm: str, seed: int, trained: Trained, rows: np.ndarray, alone: bool = False
    ) -> np.ndarray:
        """Deal rows of test tokens, [rows, tokens + 1], ROWS side by side or each alone, to a new
        process that has the weights. Returns the losses that follow from its distributions,
        float64 [rows, tokens]."""
        groups = np.split(
            np.arange(len(rows)), range(1 if alone else ROWS, len(rows), 1 if alone else ROWS)
        )
        losses = np.empty((len(rows), rows.shape[1] - 1))
        more = {"weights": trained.tensors, "tokens": losses.shape[1], "deals": len(groups)}
        with self.process(arm, "score", seed, **more) as talk:
            talk.send(trained.weights or b"")
            vocab = int(talk.run["model"]["vocab_size"])
            for group in groups:
                dealt = rows[group].astype(np.int64)
                talk.send(dealt[:, 0])
                for place in range(losses.shape[1]):
                    distributions = talk.receive()[1]
                    if place + 1 < losses.shape[1]:
                        talk.send(dealt[:, place + 1])  # while this one is summed
                    shaped = np.frombuffer(distributions, np.float32).reshape(len(group), vocab)
                    losses[group, place] = nats(shaped, dealt[:, place + 1])
        if not np.isfinite(losses).all():
            fault = f"{(~np.isfinite(losses)).sum()} of {losses.size} tokens have no probability"
            if arm == "base":
                raise UserError(f"{self.entrant.base} cannot be judged against", why=fault)
            self.refuse(fault)
        return losses

    def draw_rows(self, corpus: str, number: int) -> np.ndarray:
        """Rows of the test text for a seed, [rows, tokens + 1], each with the last token of the
        row before it.

        No row is drawn for a second seed before all have been drawn.
        """
        tokens = self.corpora[corpus].tokens["test"]
        contexts = [int(run["model"]["context_length"]) for run in self.runs.values()]
        size = min(SEQ_LEN, max(contexts), len(tokens) - 1)
        count = (len(tokens) - 1) // size
        order = draw(self.secret, f"rows {corpus}").permutation(count)
        most = min(MOST_ROWS, count)
        chosen = np.take(order, np.arange(number * most, (number + 1) * most), mode="wrap")
        rows: np.ndarray = tokens[chosen[:, None] * size + np.arange(size + 1)]
        return rows

    # --- the checks ---

    def check(self, name: str, fault: str, seen: str = "") -> None:
        """Write a check to the record: what is wrong, "" if nothing is; once if it passes. Raises
        EndedError for a fault."""
        if fault or all(check["name"] != name for check in self.record.checks):
            self.record.write(
                "check", {"name": name, "passed": not fault, "seen": (fault or seen)[:2000]}
            )
        if fault:
            raise EndedError("dishonest", f"{name}: {fault}")

    def refuse(self, *faults: str) -> None:
        """End the judgement if there is a fault."""
        if any(faults):
            raise EndedError("refused", "; ".join(filter(None, faults)))

    def check_run(self, arm: str, run: dict[str, Any]) -> None:
        """The run is the same in every process, whatever its seed, and keeps the rules of its
        base.
        """
        rest = {name: value for name, value in run.items() if name != "seed"}
        same = self.runs.setdefault(arm, rest) == rest
        if arm == "idea":
            self.check(
                "is the same run each time", "" if same else "another process got another run"
            )
        self.check_rules(arm, run)

    def check_rules(
        self,
        arm: str,
        run: dict[str, Any],
        again: bool = False,
        numbers: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Refuse an idea that breaks a rule, and any run that starts from what was not dealt to
        it.
        """
        starts = [
            name for name in ("init_from_counts", "first_weights") if run.get(name) is not None
        ]
        if arm == "base":
            if starts:
                raise UserError(
                    f"{self.entrant.base} cannot be judged against",
                    why=f"{starts[0]} needs other text",
                )
            return
        base = self.runs["base"]
        rules = replace(RULES, steps=base["steps"], tokens=tokens_of(base))
        taken = Taken(run["steps"], tokens_of(run), params=numbers, seconds=seconds)
        self.refuse(
            *rules_broken(rules, taken),
            *(f"{name} is set" for name in starts),
            "an optimizer that computes gradients more than once a step" if again else "",
        )

    def check_again(self, again: Trained, first: Trained) -> None:
        """A second training with the same seed gives the same losses and weights."""
        same = again.losses == first.losses and again.sha256 == first.sha256
        differs = next(
            (
                n
                for n, (a, b) in enumerate(zip(again.losses, first.losses, strict=False), 1)
                if a != b
            ),
            0,
        )
        place = f"step {differs}" if differs else "the weights after the last step"
        self.check(
            "gives the same bits again", "" if same else f"another process differs at {place}"
        )

    def check_alone(
        self, seed: int, trained: Trained, rows: np.ndarray, losses: np.ndarray
    ) -> None:
        """Rows that are dealt alone have the losses that they had beside others."""
        again = self.score("idea", seed, trained, rows, alone=True)
        apart = float(np.abs(again - losses).mean(axis=1).max())
        means = f"{losses.mean():.4f} nats beside other rows, {again.mean():.4f} alone"
        seen = f"{len(rows)} rows, mean difference {apart:.1e} nats: {means}"
        self.check("scores each row by itself", seen if apart > ALONE else "", seen)


def tokens_of(run: dict[str, Any]) -> int:
    """How many tokens a run reads."""
    return int(run["steps"]) * int(run["data"]["batch_size"]) * int(run["data"]["seq_len"])


def rows_for(gains: np.ndarray) -> int:
    """How many rows keep the standard error of a gain below NOISE, in whole deals, from the gains
    of some rows.
    """
    deals = math.ceil((float(gains.std(ddof=1)) / NOISE) ** 2 / ROWS) if len(gains) > 1 else 1
    return min(max(deals, 1) * ROWS, MOST_ROWS)


def checked(tensors: Any) -> list[Any]:
    """What a process says its weights are, [[name, dtype, shape], ...]. Raises ValueError for
    anything else.
    """
    for name, dtype, shape in tensors:
        sizes = all(type(size) is int and 0 <= size <= MOST_NUMBERS for size in shape)
        if (
            type(name) is not str
            or dtype not in DTYPES
            or not sizes
            or math.prod(shape) > MOST_NUMBERS
        ):
            raise ValueError(f"no tensor: {name!r:.50} {dtype!r:.50} {shape!r:.50}")
    if len(tensors) > MOST_TENSORS:
        raise ValueError(f"{len(tensors)} tensors")
    return list(tensors)


def nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64 [rows]: the losses of target ids under float32 [rows, vocab], logits, or
    log-probabilities, which are logits too. Not finite where a row is not a distribution."""
    most = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.log(np.exp(logits - most).sum(axis=1, dtype=np.float64))
        picked: np.ndarray = logits[np.arange(len(targets)), targets].astype(np.float64)
        return total + most[:, 0] - picked


# --- a record, done again
# ---


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
    if secret is None:
        raise UserError(
            f"{judgement.path} has no verdict",
            why="it was not finished, and its secret is not known",
        )
    if begin.get("protocol") != 2:
        raise UserError(
            f"{judgement.path} cannot be replayed", why="it was judged by the first protocol"
        )
    texts = {short_name(corpus.name): corpus for corpus in corpora}
    if {name: corpus.sha256 for name, corpus in texts.items()} != begin["corpus_sha256"]:
        raise UserError(
            "these are not the texts that were judged",
            why=f"they were {', '.join(begin['corpora'])}",
        )
    whole = (
        len({trial["seed"] for trial in judgement.trials})
        if judgement.reasons
        else len(judgement.gains())
    )
    again = Judgement(folder / "record.jsonl")
    about = {name: value for name, value in begin.items() if name not in ("event", "previous")}
    again.write("begin", about | {"sealed": sandbox.bubblewrap() is not None})
    rows = {trial["corpus"]: int(trial["rows"]) for trial in judgement.trials if "rows" in trial}
    Judging(texts, again, secret, tell, rows).finish(math.inf, whole or 1)
    faults = (
        []
        if again.word == judgement.word
        else [f"the verdict is {again.word}, the record says {judgement.word}"]
    )
    if len(again.trials) != len(judgement.trials):
        faults.append(f"{len(again.trials)} trials, the record has {len(judgement.trials)}")
    largest = 0.0
    here = (begin["version"], begin["machine"]) == (__version__, hardware.cpu_name())
    for old, new in zip(judgement.trials, again.trials, strict=False):
        place = f"{old['corpus']}, seed {old['seed']}, {old['arm']}"
        apart = abs(old["loss"] - new["loss"])
        largest = max(largest, apart)
        if not apart <= (EQUAL if here else ACROSS_MACHINES):
            faults.append(f"{place}: loss {new['loss']:.6f}, the record has {old['loss']:.6f}")
    return Replay(faults, largest, again)
