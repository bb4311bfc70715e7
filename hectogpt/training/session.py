"""A run from its first weights to its scores. The command line, trials and Python users all drive a Session.

session = Session.open(run, corpus)
for step in session.steps():
    ...
session.evaluate("dev")
result = session.result()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hectogpt import __version__, errors, hardware
from hectogpt.data import Corpus, Tokenizer, open_corpus
from hectogpt.display import curve_svg, facts_html, facts_text
from hectogpt.errors import UserError
from hectogpt.model import Transformer, native
from hectogpt.model.weights import load_model, load_tensors, saved_tensors
from hectogpt.serialization import dump
from hectogpt.training import loop, precision, setup, together
from hectogpt.training.checkpoint import Checkpoint
from hectogpt.training.evaluate import EvalResult, evaluate
from hectogpt.training.facts import check_same, code_hash, differences
from hectogpt.training.loop import Step
from hectogpt.training.optim import OptimizerGroup
from hectogpt.training.parallel import World
from hectogpt.training.precision import Machine
from hectogpt.training.run import Run
from hectogpt.training.state import State, put_state, take_state


@dataclass(frozen=True)
class RunResult:
    """What a run came to. Every number that is reported anywhere is defined here.

    corpus: its name. corpus_sha256: split -> hash of its tokens.
    losses, grad_norms: of every step, nats per token and before clipping, with the weights before the update.
    train_tokens: tokens read. params: parameters of the model.
    seconds: of building, compiling and training; scoring is not in them. peak_mb: the process's (on a GPU torch's)
        largest memory up to the end of training, MiB.
    machine: device, dtypes and threads in words.
    scores: split -> held-out score, of the splits that were scored.
    folder: where it was written, if it was.
    """

    run: Run
    corpus: str
    corpus_sha256: dict[str, str]
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    train_tokens: int
    params: int
    seconds: float
    peak_mb: float
    machine: dict[str, str | int]
    scores: dict[str, EvalResult]
    model: Transformer = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    folder: Path | None = None

    @property
    def dev_loss(self) -> float | None:
        """Held-out loss on the dev split, nats per token; None if it was not scored."""
        return self.scores["dev"].loss if "dev" in self.scores else None

    @property
    def train_loss_last(self) -> float:
        """The assignment's number: the loss on the last batch, before its update. nan without steps."""
        return self.losses[-1] if self.losses else float("nan")

    @property
    def train_loss_last10(self) -> float:
        """Mean loss of the last ten batches (of all, if there are fewer). nan without steps."""
        return float(np.mean(self.losses[-10:])) if self.losses else float("nan")

    def facts(self) -> dict[str, str]:
        """The result in words, for people."""
        facts = {
            f"{split} loss": f"{score.loss:.4f} nats/token, {score.bits_per_byte:.4f} bits/byte"
            for split, score in self.scores.items()
        }
        facts["last training loss"] = f"{self.train_loss_last:.4f}"
        facts["parameters"] = f"{self.params:,}"
        facts["tokens"] = f"{self.train_tokens:,} of {self.corpus}"
        facts["seconds"] = f"{self.seconds:.1f} (threads: {self.machine['threads']}, {self.machine['device']})"
        return facts if self.folder is None else facts | {"folder": str(self.folder)}

    @property
    def _title(self) -> str:
        return f"{self.run.recipe}, seed {self.run.seed}, after {len(self.losses)} steps"

    def __repr__(self) -> str:
        loss = "not scored" if self.dev_loss is None else f"dev loss {self.dev_loss:.4f}"
        return f"<RunResult {self._title}: {loss}>"

    def __str__(self) -> str:
        return facts_text(self._title, self.facts())

    def _repr_html_(self) -> str:
        """What a notebook shows: the facts, and the training loss as a curve."""
        return facts_html(self._title, self.facts(), curve_svg(self.losses))

    def summary(self) -> dict[str, Any]:
        """The numbers as plain values, for summary.json and records."""
        scored = {f"{split}_loss": score.loss for split, score in self.scores.items()}
        scored |= {f"{split}_bpb": score.bits_per_byte for split, score in self.scores.items()}
        return {
            "recipe": self.run.recipe,
            "corpus": self.corpus,
            "corpus_sha256": self.corpus_sha256,
            "tokenizer_sha256": self.tokenizer.sha256,
            "seed": self.run.seed,
            "steps": len(self.losses),
            "train_tokens": self.train_tokens,
            "params": self.params,
            "train_loss_first": self.losses[0] if self.losses else None,
            "train_loss_last": self.train_loss_last,
            "train_loss_last10": self.train_loss_last10,
            "seconds": self.seconds,
            "peak_mb": self.peak_mb,
            "machine": self.machine,
            **scored,
        }


class Session:
    """One run that is under way: run, corpus, machine, model and optimizer, and what has come of them so far."""

    def __init__(
        self, run: Run, corpus: Corpus, machine: Machine, model: Transformer, optimizer: OptimizerGroup, head: str
    ) -> None:
        self.run, self.corpus, self.machine = run, corpus, machine
        self.model, self.optimizer, self.head = model, optimizer, head
        self.done: list[Step] = []
        self.scores: dict[str, EvalResult] = {}
        self.setup_seconds = 0.0
        self.peak_mb = 0.0
        self.weights_only = False  # whether the optimizer is new although steps are done
        self.world: World | None = None  # the processes that share the run, None for one alone
        self._signals: Sequence[int] = ()
        self._agreed_to_stop = False
        self.sharded: together.Sharded | None = None  # what trains in place of model and optimizer
        self.wants_whole: Callable[[int], bool] = lambda step: False  # whether they are needed after this step

    @classmethod
    def open(
        cls, run: Run, corpus: Corpus | None = None, resume: Checkpoint | None = None, world: World | None = None
    ) -> Session:
        """Choose the machine, build model and optimizer. corpus: the run's own unless given.

        resume: the state to go on from; device, dtypes and threads are then those that the run began with, as far as
        this machine has them (`differences` tells the rest). world: the processes that share the run; all of them open
        it, and only rank 0 passes `resume`.

        Raises UserError for a corpus that does not fit the model, a device or memory that is not there, and for a
        checkpoint of another run (CHECKPOINT) or another text (DATA).
        """
        corpus = open_corpus(run.corpus) if corpus is None else corpus
        setup.check_corpus(run, corpus)
        begun = time.perf_counter()
        if world is not None:
            resume = together.share_checkpoint(world, resume)
        chosen: dict[str, Any] = {} if resume is None else resume.facts.get("machine", {})
        if world is not None:
            machine = together.choose_machine(world, run, chosen)
        else:
            machine = precision.choose(run) if resume is None else precision.choose_again(run, chosen)
        sharded, whole = world is not None and world.sharded, world is None or world.holds_whole
        home = torch.device("cpu") if sharded else machine.device  # of what rank 0 keeps whole
        model = setup.build_model(run, machine, corpus, home, form=not whole)
        if resume is not None:
            model.fit_to(resume.state.weights())
        elif run.first_weights is not None and whole:
            run.first_weights.load_into(model)
        head = together.choose_head(world, run, model, machine, chosen.get("head"))
        optimizer = setup.build_optimizer(run, model) if whole else OptimizerGroup([])
        session = cls(run, corpus, machine, model, optimizer, head)
        session.world = world
        if resume is not None:
            session._go_on_from(resume, whole)
        if world is not None:
            together.check_equal(world, model, session._facts()["machine"])
        if world is not None and world.sharded:
            form = setup.build_model(run, machine, corpus, form=True) if whole else model
            form.fit_to(model.state_dict())
            had = (model, optimizer) if whole else None
            session.sharded = together.make_sharded(world, run, machine, form, had, resume)
        session.setup_seconds += time.perf_counter() - begun
        session.peak_mb = hardware.peak_memory_mb(str(machine.device))
        return session

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.done)

    @property
    def stopping(self) -> bool:
        """Whether the run is to end after the last step done: a signal has come to it, or to any of its processes."""
        return bool(self._signals) if self.world is None else self._agreed_to_stop

    def steps(self, signals: Sequence[int] = ()) -> Iterator[Step]:
        """Train to the run's end, one Step at a time. signals: those that have come to this process, which may grow.
        Raises UserError: DIVERGED, or PEER if another process has failed."""
        self._signals = signals
        batches, trained = setup.make_batches(self.run, self.corpus), self.sharded or self
        gradients = together.make_gradients(self.world, self.run, trained.model, batches, self.machine)
        gradients.wishes = lambda: (bool(signals), self.wants_whole(self.step + 1))
        steps = loop.steps(
            self.run, trained.model, trained.optimizer, batches, self.machine, tuple(self.done), gradients
        )
        if self.machine.device.type == "cpu":
            hardware.keep_freed_memory()
        try:
            while True:
                with native.using(self.head == "native"):  # for this step alone: another session may take its own
                    step = next(steps, None)
                if step is None:
                    hardware.give_back_memory()
                    return
                self.done.append(step)
                if self.sharded is not None:
                    self.optimizer.forget_state()  # that of an earlier step; the whole model stays, to be filled again
                self._agreed_to_stop = gradients.agreed[0]
                self.peak_mb = hardware.peak_memory_mb(str(self.machine.device))
                if any(gradients.agreed) or step.number == self.run.steps:
                    self._bring_together(gradients.agreed[0] or step.number == self.run.steps)
                yield step
        except UserError as error:
            if error.code == errors.DIVERGED:
                self._bring_together(last=True)
            raise
        finally:
            gradients.close()

    @property
    def is_whole(self) -> bool:
        """Whether model and optimizer have the state after the last step done."""
        return self.sharded is None or (self.sharded.step == self.step and not self.in_parts)

    @property
    def in_parts(self) -> bool:
        """Whether the state after the last step done is to be saved by all processes, each its own parts."""
        return self.sharded is not None and self.sharded.step == self.step and self.sharded.described is not None

    def _bring_together(self, last: bool) -> None:
        if self.sharded is not None and self.sharded.step != self.step:
            self.sharded.bring_together(self.step, last)

    def checkpoint(self, state: State | None = None) -> Checkpoint:
        """A copy of the run's state between two steps. state: in place of that of model and optimizer. Raises UserError
        (CHECKPOINT) if the optimizer's cannot be saved, or is not known (`take_weights`)."""
        if state is None and not self.is_whole:
            what = f"the state after step {self.step} is sharded over processes"
            raise UserError(what, why="no process has all of it", code=errors.CHECKPOINT)
        if self.weights_only:
            why = "the run goes on from its weights, since it has no checkpoint"
            raise UserError("the optimizer's state is not known", why=why, code=errors.CHECKPOINT)
        rows = [[s.loss, s.grad_norm, s.lr, s.seconds, float(s.spike), float(s.skipped)] for s in self.done]
        history = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 6)
        return Checkpoint(self.step, state or take_state(self.model, self.optimizer), history, self._facts())

    def differences(self, facts: dict[str, Any]) -> list[str]:
        """What is not as it was when the checkpoint with these facts was made, so that bits may differ; in words."""
        return differences(facts, self._facts())

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint tells of where it was made; `machine` is what the bits depend on, the run aside."""
        machine = self.machine.describe() | {"head": self.head, "processor": torch.backends.cpu.get_cpu_capability()}
        del machine["python"]
        if self.world is not None and not self.world.describe()["elastic"]:
            machine["sharing"] = self.world.describe()["in_words"]
        return {
            "machine": machine | {"code": code_hash()},
            "version": __version__,
            "run": dump(self.run),
            "corpus": self.corpus.name,
            "corpus_sha256": self.corpus.sha256,
            "tokenizer_sha256": self.corpus.tokenizer.sha256,
            "setup_seconds": self.setup_seconds,
        }

    def _go_on_from(self, checkpoint: Checkpoint, whole: bool) -> None:
        check_same(checkpoint.step, self.run, checkpoint.facts, self._facts())
        if whole:
            put_state(self.model, self.optimizer, checkpoint.state)
        tokens = self.run.data.batch_size * self.run.data.seq_len
        self.done = [
            Step(number, number * tokens, loss, norm, lr, seconds, bool(spike), bool(skipped))
            for number, (loss, norm, lr, seconds, spike, skipped) in enumerate(checkpoint.history.tolist(), start=1)
        ]
        self.setup_seconds = float(checkpoint.facts.get("setup_seconds", 0.0))

    def take_weights(self, steps: Sequence[Step], folder: Path) -> bool:
        """Take the weights of a run of ours without a checkpoint, if `steps` are all its steps and its weights are
        there; enough to score it. Raises UserError (CHECKPOINT) for damaged weights."""
        if len(steps) != self.run.steps or not (folder / "model.safetensors").exists():
            return False
        weights = saved_tensors(load_model(folder))
        self.model.fit_to(weights)
        load_tensors(self.model, weights)
        self.done = list(steps)
        self.weights_only = True
        return True

    def evaluate(self, split: str = "dev") -> EvalResult:
        """Score the model on a held-out split, "dev" or "test", on the machine's device."""
        home = self.model.embeddings.weight.device  # the CPU, where other weights are sharded
        try:
            self.model.to(self.machine.device)
            score = evaluate(self.model, self.corpus.tokens[split], self.corpus.tokenizer.token_bytes)
        finally:
            self.model.to(home)
        self.scores[split] = score
        return score

    def result(self) -> RunResult:
        """What the run came to so far."""
        return RunResult(
            run=self.run,
            corpus=self.corpus.name,
            corpus_sha256=self.corpus.sha256,
            losses=tuple(step.loss for step in self.done),
            grad_norms=tuple(step.grad_norm for step in self.done),
            train_tokens=self.done[-1].tokens if self.done else 0,
            params=sum(p.numel() for p in self.model.parameters()),
            seconds=self.setup_seconds + sum(step.seconds for step in self.done),
            peak_mb=self.peak_mb,
            machine=self.machine.describe(),
            scores=dict(self.scores),
            model=self.model,
            tokenizer=self.corpus.tokenizer,
        )


def train(run: Run, corpus: Corpus | None = None) -> RunResult:
    """Train a run to its end and score it on dev. Raises UserError as Session does."""
    session = Session.open(run, corpus)
    for _ in session.steps():
        pass
    session.evaluate("dev")
    return session.result()
