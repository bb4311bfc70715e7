"""A Run: everything that decides what a training run computes, as one frozen value.

A recipe is a function from a Run to a new one. The sections (model, init, data, optim, schedule,
loss) are also the kinds of idea.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from hectogpt.data import Corpus, DataOrder, Shuffled
from hectogpt.display import facts_text, value_text
from hectogpt.errors import Setting, SetTo, UserError
from hectogpt.idea_file import IdeaFile, imported
from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.serialization import Value, classes_of, diff, idea_module, load
from hectogpt.training.losses import CrossEntropy, Loss
from hectogpt.training.optim import AdamW, Kind, Optim

MOST_THREADS = 1024
MOST_LEAVES = 10_000
# Fields that may change when a run is resumed. All except the last two can change bits; the
# resumed run then says so.
CHANGEABLE = {"device", "dtype", "head_dtype", "threads", "data.leaves", "corpus", "recipe"}
# A run that differs from its recipe only in these still counts as that recipe.
UNMARKED = {"corpus", "seed", "device", "dtype", "head_dtype", "threads"}
Dtype = Literal["auto", "float32", "bfloat16", "float64"]


# --- the parts of a run, except the model, optim/ and losses.py ---


@dataclass(frozen=True)
class FirstWeights:
    """Another model's weights, as the start of a run (see `setup.load_first_weights`).

    Attributes:
        source: the model's folder, or its name on the hub.
        sha256: the hash of its tensors, from `hash_state`.
    """

    source: str
    sha256: str


@dataclass(frozen=True)
class Schedule(Value):
    """A factor for every learning rate, as a pure function of the step."""

    @abstractmethod
    def factor(self, step: int, steps: int) -> float:
        """The factor at 0-based `step` of `steps`."""

    def of_kind(self, kind: Kind, step: int, steps: int) -> float:
        """The factor for one kind of parameters. Override it to have a schedule for each kind."""
        return self.factor(step, steps)


@dataclass(frozen=True)
class Constant(Schedule):
    """A constant learning rate."""

    def factor(self, step: int, steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class LinearDecay(Schedule):
    """Warm up, stay constant, then decay linearly.

    The rise over `warmup` steps starts at 1/warmup, never at 0. The decay starts after the
    fraction `hold` of the run. The last step's factor is one decrement above `final`
    (2502.15938: decay to zero).
    """

    warmup: int = 0
    hold: float = 0.0
    final: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        start = max(self.hold * steps, min(self.warmup, steps))
        fall = (steps - step) / (steps - start) if step >= start else 1.0
        return rise * (self.final + (1 - self.final) * min(1.0, fall))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Warm up for `warmup` steps, then follow half a cosine down to `final` (1608.03983)."""

    warmup: int = 0
    final: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, steps - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class SessionView(Protocol):
    """The part of a Session that an AfterStep uses.

    Attributes:
        model: the model.
        corpus: the text.
        kept: tensors by name, which checkpoints store in addition to weights and optimizer.
        step: how many of the run's steps are done.
    """

    model: Transformer
    corpus: Corpus
    kept: dict[str, Tensor]

    @property
    def step(self) -> int: ...


@dataclass(frozen=True)
class AfterStep(Value):
    """An action after every step, without gradients. If it changes the model, the change stays."""

    @abstractmethod
    def after_step(self, session: SessionView) -> Mapping[str, float] | None:
        """Inspect the session, or change its model.

        Args:
            session: the Session. Store state that must survive a resume in `session.kept`.

        Returns numbers for metrics.jsonl, where they appear as `own/NAME`, or None.
        """


@dataclass(frozen=True)
class Data:
    """How the token stream becomes batches: each step takes `batch_size` rows of `seq_len` tokens.

    Each token of a row after the first is predicted from those before it.

    Attributes:
        batch_size: rows per batch.
        seq_len: tokens per row.
        order: the order of the rows in each epoch.
        leaves: compute the batch in this many equal parts, one after the other, which takes less
            memory. Their gradients are added in a fixed binary tree, so the bits are the same for
            any number of processes. None computes the whole batch at once or, under torchrun,
            lets the processes choose a number.
    """

    batch_size: int = 16
    seq_len: int = 512
    order: DataOrder = field(default_factory=Shuffled)
    leaves: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(
                Setting("data.batch_size", self.batch_size), why="it must be at least 1"
            )
        if self.seq_len < 2:
            raise UserError(
                Setting("data.seq_len", self.seq_len), why="predicting needs at least 2 tokens"
            )
        if self.leaves is not None and (
            self.leaves not in range(1, MOST_LEAVES + 1) or self.batch_size % self.leaves
        ):
            most = min(self.batch_size, MOST_LEAVES)
            divisors = [n for n in range(1, most + 1) if self.batch_size % n == 0]
            raise UserError(
                Setting("data.leaves", self.leaves),
                why=f"it must divide data.batch_size = {self.batch_size}, and be at most "
                f"{MOST_LEAVES:,}",
                fix=SetTo("data.leaves", max(n for n in divisors if n <= max(self.leaves, 1))),
            )

    @property
    def rows_at_once(self) -> int:
        """How many rows are computed at a time."""
        return self.batch_size // (self.leaves or 1)


# --- the run ---


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        after_step: the actions after every step, in order.
        first_weights: start from another model's weights, as fine-tuning does.
        seed: decides the initial weights and the order of the data.
        ideas: the SHA-256 of each of the user's own files that made the run, if any.
        threads: 0 means all physical cores.
    """

    model: ModelConfig
    init: Init = field(default_factory=Init)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Constant)
    loss: Loss = field(default_factory=CrossEntropy)
    after_step: tuple[AfterStep, ...] = ()
    first_weights: FirstWeights | None = None
    recipe: str = "custom"
    ideas: tuple[str, ...] = ()
    corpus: str = "sotu"
    steps: int = 100
    seed: int = 0
    gradient_clipping: float | None = 1.0
    device: str = "auto"
    dtype: Dtype = "auto"
    head_dtype: Dtype = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(Setting("steps", self.steps), why="a run needs at least one step")
        if not 0 <= self.seed < 2**63:
            raise UserError(Setting("seed", self.seed), why="it must lie between 0 and 2^63 - 1")
        if not 0 <= self.threads <= MOST_THREADS:
            why = f"it must be positive, or 0 for all physical cores, and at most {MOST_THREADS:,}"
            raise UserError(Setting("threads", self.threads), why=why)
        if self.gradient_clipping is not None and not self.gradient_clipping > 0:
            raise UserError(
                Setting("gradient_clipping", self.gradient_clipping),
                why="it must be positive, or none",
            )
        if self.data.seq_len > self.model.context_length:
            raise UserError(
                (
                    Setting("data.seq_len", self.data.seq_len),
                    " with ",
                    Setting("model.context_length", self.model.context_length),
                ),
                why="a row must fit in the context",
                fix=SetTo("data.seq_len", self.model.context_length),
            )

    @property
    def tokens(self) -> int:
        """The most tokens that the run can read; it reads fewer if its data order cuts batches."""
        return self.steps * self.data.batch_size * self.data.seq_len

    def _facts(self) -> dict[str, str]:
        """The model's sizes, and every field that differs from the run of a plain GPT-2."""
        m = self.model
        model = ModelConfig(m.d_model, m.n_heads, m.n_layers, m.context_length, m.vocab_size)
        plain = Run(model, data=Data(seq_len=min(Data().seq_len, m.context_length)))
        sizes = ("d_model", "n_heads", "n_layers", "context_length")
        return {f"model.{name}": str(getattr(m, name)) for name in sizes} | {
            path: value_text(new)
            for path, (_, new) in diff(plain, self).items()
            if path.split(".")[0] not in ("recipe", "ideas")
        }

    def __repr__(self) -> str:
        """Format the run for `print` and notebooks."""
        return facts_text(f"Run {self.recipe}", self._facts())


def load_run(data: Any) -> Run:
    """Load the Run that `dump` wrote.

    A user's own classes are found in the files that `data` names, if those files are loaded.
    Raises UserError, which names the field that does not fit.
    """
    named = data.get("ideas") if isinstance(data, dict) else None
    with classes_of(
        [sha256 for sha256 in named if isinstance(sha256, str)] if isinstance(named, list) else []
    ):
        run: Run = load(Run, data)
    return run


def files_of(run: Run) -> list[IdeaFile]:
    """Return the user's own files that made the run.

    Raises UserError if this process has not imported one of them.
    """
    files = {sha256: imported(idea_module(sha256)) for sha256 in run.ideas}
    missing = [sha256 for sha256, file in files.items() if file is None]
    if missing:
        raise UserError(
            f"{run.recipe} comes from a file that is not loaded",
            why=f"its source has the SHA-256 {missing[0][:16]}...",
            fix="name it as FILE.py:FUNCTION",
        )
    return [file for file in files.values() if file is not None]


def changes(before: Run, after: Run) -> list[str]:
    """Describe each difference that forbids resuming `before` as `after`."""
    found = {
        path: pair
        for path, pair in diff(before, after).items()
        if not CHANGEABLE & {path, path.split(".")[0]}
    }
    return [f"{path} was {old}, now {new}" for path, (old, new) in found.items()]


def is_modified(base: Run, run: Run) -> bool:
    """True if a run is no longer the recipe `base`.

    That is, if they differ in more than text, seed, machine and leaves.
    """
    return bool(
        {path.split(".")[0] for path in diff(base, run) if path != "data.leaves"} - UNMARKED
    )


def label_of(run: Run, modified: bool) -> str:
    """The recipe's name, with a mark if the recipe was changed."""
    return run.recipe + (" (modified)" if modified else "")
