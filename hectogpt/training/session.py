"""A run from its initial weights to its scores.

`events` (events.py) opens the session and takes its steps. All other code reads that stream.

    session = Session.open(run, corpus)
    for step in session.steps():
        ...
    session.evaluate("dev")
    result = session.result()
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hectogpt import __version__, errors, hardware
from hectogpt.data import Corpus, open_corpus
from hectogpt.errors import CheckpointError, DataError, SetTo, UserError
from hectogpt.model import Transformer
from hectogpt.model.weights import (
    copied,
    hash_named,
    hash_state,
    load_model,
    load_tensors,
    saved_tensors,
)
from hectogpt.run_records import OWN, RUN, read_object
from hectogpt.serialization import dump
from hectogpt.training import loop, precision, setup
from hectogpt.training.checkpoint import Checkpoint, code_hash, put_state, take_state, weights_in
from hectogpt.training.evaluate import EvalResult, RunResult, evaluate
from hectogpt.training.loop import Gradients, Step
from hectogpt.training.optim import OptimizerGroup
from hectogpt.training.parallel import ALONE, World
from hectogpt.training.precision import Machine
from hectogpt.training.run import Run, changes, load_run

NO_HASH = "0" * 16  # stands for a step's hash if it was not recorded
KEPT = "kept."  # prefix of the names of AfterStep tensors in checkpoints


@dataclass(eq=False, repr=False)
class Session:
    """A run in progress: its model and optimizer, and its results so far.

    Attributes:
        run: the run.
        corpus: its text.
        world: the processes that share the run.
        machine: device, dtypes and threads.
        model: the model.
        optimizer: the optimizer.
        kernels: "native" or "eager" (see setup.choose_kernels).
        done: the steps done so far.
        hashes: step -> hash of the weights after it, for the steps whose hash was recorded.
        scores: split -> held-out score.
        kept: the state of the run's AfterStep parts.
        metrics: the numbers that these parts returned in the last step, keyed "own/NAME".
        setup_seconds: time taken to build the session.
        peak_mb: the peak memory so far, in MiB.
        stopping: True once any of the run's processes has received a signal; the run then ends
            with the step just done.
    """

    run: Run
    corpus: Corpus
    world: World
    machine: Machine
    model: Transformer
    optimizer: OptimizerGroup
    kernels: str
    done: list[Step] = field(default_factory=list)
    hashes: dict[int, str] = field(default_factory=dict)
    scores: dict[str, EvalResult] = field(default_factory=dict)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    setup_seconds: float = 0.0
    peak_mb: float = 0.0
    stopping: bool = False

    def __post_init__(self) -> None:
        self.first_hashes = hash_trained(self.model)

    @classmethod
    def open(
        cls,
        run: Run,
        corpus: Corpus | None = None,
        resume: Checkpoint | None = None,
        world: World = ALONE,
    ) -> Session:
        """Choose device, dtypes and threads, and build model and optimizer.

        Args:
            run: the run.
            corpus: its text; None opens the one that the run names.
            resume: the state to resume from. Device, dtypes and threads are then those of the
                checkpoint, as far as this machine has them (`differences` lists the rest).
            world: the processes that share the run. All of them call this, and only rank 0 passes
                `resume`.

        Raises UserError if the corpus does not fit the model, if the device or the memory is not
        available, or if the checkpoint belongs to a different run (CHECKPOINT) or text (DATA).
        """
        corpus = open_corpus(run.corpus) if corpus is None else corpus
        setup.check_corpus(run, corpus)
        start = time.perf_counter()
        resume = _share_checkpoint(world, resume)
        chosen: dict[str, Any] = {} if resume is None else resume.facts.get("machine", {})
        machine = _choose_machine(world, run, chosen)
        model = setup.build_model(run, machine, corpus)
        if resume is not None:
            model.fit_to(weights_in(resume.tensors))
        elif run.first_weights is not None:
            setup.load_first_weights(run.first_weights, model)
        first: str = world.share(
            "the kernels", lambda: setup.choose_kernels(run, model, machine, chosen.get("head"))
        )
        kernels = setup.choose_kernels(run, model, machine, first)  # rank 0's choice, at all ranks
        model.use_kernels(kernels == "native")
        session = cls(
            run, corpus, world, machine, model, setup.build_optimizer(run, model), kernels
        )
        if resume is not None:
            session._resume(resume)
        _check_equal(world, model, session.facts()["machine"])
        session.setup_seconds += time.perf_counter() - start
        session.peak_mb = hardware.peak_memory_mb(str(machine.device))
        return session

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.done)

    def steps(self, signals: Sequence[int] = ()) -> Generator[Step, None, None]:
        """Train to the run's end, and yield each Step.

        Args:
            signals: signals that this process has received; the sequence may grow.

        Raises UserError: DIVERGED, or PEER if another process has failed.
        """
        batches = setup.make_batches(self.run, self.corpus)
        gradients = Gradients(self.run, self.model, batches, self.machine, signals, self.world)
        if self.machine.device.type == "cpu":
            precision.keep_freed_memory()
        self.model.train()
        try:
            for number in range(self.step, self.run.steps):
                start = time.perf_counter()
                loss, norm = loop.update(gradients, self.optimizer, number)
                own = batches.tokens(number)
                tokens = own + (self.done[-1].tokens if self.done else 0)
                seconds = time.perf_counter() - start
                step = Step(number + 1, tokens, loss, norm, self.optimizer.lr, seconds, own)
                self.done.append(step)
                self._after_step()
                step = self.done[-1] = replace(step, seconds=time.perf_counter() - start)
                self.stopping = gradients.stopping
                self.peak_mb = hardware.peak_memory_mb(str(self.machine.device))
                yield step
        finally:
            # Other optimizers, and clipping, refuse the sparse gradients that AdamW asks for.
            for module in self.model.modules():
                if isinstance(module, nn.Embedding):
                    module.sparse = False
        precision.give_back_memory()

    @torch.no_grad()
    def _after_step(self) -> None:
        """Apply the run's AfterStep parts. Raises UserError if a metric is not finite."""
        self.metrics = {}
        for part in self.run.after_step:
            for name, number in (part.after_step(self) or {}).items():
                if not math.isfinite(number):
                    raise UserError(
                        f"{type(part).__name__}: {name} is {number}",
                        why="metrics.jsonl holds finite numbers",
                    )
                self.metrics[OWN + name] = float(number)

    def checkpoint(self) -> Checkpoint:
        """Copy the run's state between two steps.

        Raises UserError (CHECKPOINT) if the optimizer's state cannot be saved.
        """
        rows = [
            [step.loss, step.grad_norm, step.lr, step.seconds, step.own_tokens]
            for step in self.done
        ]
        tensors, values = take_state(self.model, self.optimizer)
        tensors |= {KEPT + name: copied(tensor) for name, tensor in self.kept.items()}
        tensors["history"] = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 5)
        hashes = "".join(self.hashes.get(step.number, NO_HASH) for step in self.done)
        tensors["hashes"] = torch.tensor(list(bytes.fromhex(hashes)), dtype=torch.uint8)
        return Checkpoint(self.step, tensors, values, self.facts())

    def differences(self, facts: dict[str, Any]) -> list[str]:
        """List the machine settings that differ from a checkpoint's, as "threads 2 -> 1".

        Any of them may change bits.

        Args:
            facts: the facts of the checkpoint.
        """
        before = facts.get("machine", {})
        return [
            f"{name} {before.get(name)} -> {value}"
            for name, value in self.facts()["machine"].items()
            if value != before.get(name)
        ]

    def facts(self) -> dict[str, Any]:
        """The metadata of a checkpoint. `machine` has the settings that bits may depend on."""
        # "head" names the kernels of every part that has kernels, not only those of the head.
        machine = self.machine.describe() | {
            "head": self.kernels,
            "processor": torch.backends.cpu.get_cpu_capability(),
        }
        del machine["python"]
        return {
            "machine": machine | {"leaves": self.run.data.leaves, "code": code_hash()},
            "version": __version__,
            "run": dump(self.run),
            "corpus": self.corpus.name,
            "corpus_sha256": self.corpus.sha256,
            "tokenizer_sha256": self.corpus.tokenizer.sha256,
            "setup_seconds": self.setup_seconds,
        }

    def _resume(self, checkpoint: Checkpoint) -> None:
        check_fits(checkpoint.step, self.run, checkpoint.facts, self.facts())
        put_state(self.model, self.optimizer, checkpoint.tensors, checkpoint.values)
        kept = {name: t for name, t in checkpoint.tensors.items() if name.startswith(KEPT)}
        device = self.machine.device
        self.kept = {name.removeprefix(KEPT): t.to(device) for name, t in kept.items()}
        history = checkpoint.tensors["history"]
        hashes = bytes(checkpoint.tensors.get("hashes", history[:0, 0]).tolist()).hex()
        totals = history[:, 4].cumsum(0).long().tolist()
        for total, (loss, norm, lr, seconds, own) in zip(totals, history.tolist(), strict=True):
            number = len(self.done) + 1
            self.done.append(Step(number, total, loss, norm, lr, seconds, int(own)))
            if (known := hashes[:16]) not in ("", NO_HASH):
                self.hashes[number] = known
            hashes = hashes[16:]
        self.setup_seconds = float(checkpoint.facts.get("setup_seconds", 0.0))

    def take_weights(self, steps: Sequence[Step], folder: Path) -> bool:
        """Load the weights of a trained run that has no checkpoint, to score it.

        Args:
            steps: the steps that the run has recorded.
            folder: the run's folder.

        Returns False, and loads nothing, unless these are all steps of the run and its weights
        exist. Raises UserError if the weights are damaged (CHECKPOINT), or were trained on a
        different text (DATA).
        """
        if len(steps) != self.run.steps or not (folder / "model.safetensors").exists():
            return False
        check_fits(len(steps), self.run, read_object(folder / RUN), self.facts())
        weights = saved_tensors(load_model(folder))
        self.model.fit_to(weights)
        load_tensors(self.model, weights)
        self.done = list(steps)
        return True

    def unmoved(self) -> list[str]:
        """Names of trained tensors that still have their initial values.

        After a resume, this works only for a run that drew its initial weights at random.
        """
        now = hash_trained(self.model)
        return [name for name, found in now.items() if found == self.first_hashes.get(name)]

    def evaluate(self, split: str = "dev") -> EvalResult:
        """Score the model on a held-out split, "dev" or "test", on the machine's device.

        Raises UserError (DIVERGED) if the loss is not finite.
        """
        score = evaluate(self.model, self.corpus.tokens[split], self.corpus.tokenizer.token_bytes)
        if not math.isfinite(score.loss):
            what = f"{split} loss {score.loss} after step {self.step}"
            why = "the last update made weights too large"
            raise UserError(what, why=why, fix="a lower learning rate", code=errors.DIVERGED)
        self.scores[split] = score
        return score

    def result(self) -> RunResult:
        """The results of the run so far."""
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


def hash_trained(model: Transformer) -> dict[str, str]:
    """The hash of each trained tensor of a model, by name."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.numel()]
    return {name: hash_named([(name, p)]) for name, p in trained}


def check_fits(step: int, run: Run, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse the state of a different run (CHECKPOINT) or of a different text (DATA).

    Args:
        step: the step of the state.
        run: the run that is to take it.
        then: the facts of the checkpoint, or the contents of run.json.
        now: the facts of the session.
    """
    kept = "the run, untouched"
    if changed := changes(load_run(then.get("run")), run):
        what = f"the checkpoint of step {step} belongs to a different run"
        raise CheckpointError(what, why="; ".join(changed[:3]), kept=kept)
    if any(
        then.get(name, now[name]) != now[name] for name in ("corpus_sha256", "tokenizer_sha256")
    ):
        raise DataError(
            f"the text is not the one that the run has read so far (corpus {now['corpus']})",
            why="its SHA-256, or that of its tokenizer, has changed",
            fix="use the old text, or a new run",
            kept=kept,
        )


# --- choices that processes share before the first step: rank 0 decides, and all check them ---


def _share_checkpoint(world: World, at: Checkpoint | None) -> Checkpoint | None:
    """Give rank 0's checkpoint to all ranks. Only rank 0's machine needs the file."""
    rest: list[Any] | None = world.share(
        "the checkpoint", lambda: None if at is None else [at.values, at.facts]
    )
    if rest is None:
        return None
    tensors = world.send({} if at is None else at.tensors)
    return Checkpoint(len(tensors["history"]), tensors, *rest)


def _choose_machine(world: World, run: Run, chosen: Mapping[str, Any]) -> Machine:
    """Give all processes rank 0's dtypes and number of threads, and each process its own GPU.

    Args:
        world: the processes that share the run.
        run: the run.
        chosen: the machine of the checkpoint; {} without one.

    Raises UserError if there are more processes than GPUs.
    """
    if world.local is None:
        return precision.choose(run, chosen)
    rank, size = world.local
    if torch.cuda.is_available() and run.device in ("auto", "cuda"):
        if size > torch.cuda.device_count():
            raise UserError(
                f"{size} processes on a machine with {torch.cuda.device_count()} GPUs",
                fix=("a process for each GPU, or ", SetTo("device", "cpu")),
            )
        torch.cuda.set_device(rank)
        run = replace(run, device=f"cuda:{rank}")
    usual = {"threads": max(1, hardware.physical_cores() // size)} | dict(chosen)
    first = world.share("the machine", lambda: precision.choose(run, usual).describe())
    return precision.choose(run, first)


def _check_equal(world: World, model: Transformer, facts: Mapping[str, Any]) -> None:
    """Check that all processes have the same kind of machine and the same weights.

    Raises DisagreementError.
    """
    if world.size == 1:
        return
    weights = hash_state({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    machine = {name: value for name, value in facts.items() if name != "device"}
    world.agree({"machine": machine, "weights": weights})
