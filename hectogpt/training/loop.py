"""One step of training: the gradients of a batch, their norm, clipping, the update.
`Session.steps` is the loop.

If the loss or the gradient norm is not finite, the run stops before the optimizer step, so weights
never become NaN. This costs one device sync per step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from hectogpt import errors
from hectogpt.data import Batches
from hectogpt.errors import UserError, set_to
from hectogpt.model import Transformer
from hectogpt.model.fused_ce import convert
from hectogpt.training.leaves import ALONE, World
from hectogpt.training.losses import Predictions, total_of
from hectogpt.training.optim import OptimizerGroup
from hectogpt.training.precision import Machine
from hectogpt.training.run import Run


@dataclass(frozen=True)
class Step:
    """One optimizer step. `number` counts from 1; tokens: read so far, `own_tokens` of them in
    this step; loss (nats per token) and grad_norm (before clipping) belong to the weights before
    the update; seconds: the step's own."""

    number: int
    tokens: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float
    own_tokens: int


@contextmanager
def seeded(seed: int, step: int, part: int, device: torch.device) -> Iterator[None]:
    """Within the context torch's random numbers are a pure function of these three, so there is no
    state to save; what they were before comes back. For dropout and other chance in a user's own
    parts: ours have none."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(
            int(np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0] >> 1)
        )
        yield


@dataclass(eq=False)
class Gradients:
    """Computes the gradients of a run's batches: of the leaves that this process owns, added up
    over all processes.

    signals: those that have come to this process, which may grow.
    world: the processes that share the run.
    stopping: True once the run is to end after the last step computed: a signal has come to it, or
        to any of its processes.
    """

    run: Run
    model: Transformer
    batches: Batches
    machine: Machine
    signals: Sequence[int] = ()
    world: World = ALONE
    stopping: bool = False

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._tables = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding)}

    def compute(self, step: int) -> Tensor:
        """Give every parameter the gradient of 0-based `step`'s batch; returns its mean loss,
        float64 [].
        """
        self.world.begin(step)
        return self.of_batch(self.batches.at(step), step)

    def of_batch(self, batch: np.ndarray, step: int) -> Tensor:
        """The same for a batch of one's own, ids [rows, tokens]; each token weighs the same."""
        leaves = self.run.data.leaves or 1
        own = leaves // self.world.size
        n_targets = batch.shape[0] * (batch.shape[1] - 1)
        first = self.world.rank * own
        # Where a data order has cut the batch, leaves may have one row more or less, and none.
        bounds = [n * len(batch) // leaves for n in range(first, first + own + 1)]
        ids = torch.from_numpy(batch[bounds[0] : bounds[-1]]).to(
            self.machine.device, non_blocking=True
        )
        parts = ids.split([end - begin for begin, end in pairwise(bounds)])

        model = self.model
        with torch.no_grad(), self.machine.autocast():  # once for all leaves
            matrix = model.lm_head.matrix(model.embeddings.weight)
            converted = convert(matrix, self.machine.head_dtype)

        def subtree(begin: int, end: int) -> list[Tensor | None]:
            """The sums of loss and gradients of some of the parts."""
            if end - begin == 1:
                return self._leaf(parts[begin], step, first + begin, n_targets, converted)
            middle = begin + (
                1 << (end - begin - 1).bit_length() - 1
            )  # as many as the largest power of two below all
            return [
                _sum_of(a, b)
                for a, b in zip(subtree(begin, middle), subtree(middle, end), strict=True)
            ]

        loss, *gradients = subtree(0, own)
        assert loss is not None
        if self.world.size > 1:
            return self._share(loss, gradients)
        self.stopping = bool(self.signals)
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient
        return loss

    def _leaf(
        self, rows: Tensor, step: int, leaf: int, n_targets: int, converted: Tensor
    ) -> list[Tensor | None]:
        """Return the leaf's share of the batch's mean cross entropy, and the gradients of the
        run's loss; None for a parameter that gets no gradient.

        n_targets: of the whole batch.
        """
        loss = torch.zeros((), dtype=torch.float64, device=rows.device)
        if len(rows):
            with seeded(self.run.seed, step, leaf, rows.device):
                loss += self._differentiate(rows, step, n_targets, converted)
        gradients = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        return [loss, *gradients]

    def _differentiate(self, rows: Tensor, step: int, n_targets: int, converted: Tensor) -> Tensor:
        with self.machine.autocast():
            progress = min(step / self.run.steps, 1.0)
            ids, targets = rows[:, :-1], rows[:, 1:]
            precision = self.machine.head_dtype
            made = Predictions(self.model, ids, targets, precision, progress, converted)
            loss = total_of(self.run.loss, made) / n_targets
            plain = made.plain / n_targets
        loss.backward()
        return plain

    @torch.no_grad()
    def _share(self, loss: Tensor, gradients: list[Tensor | None]) -> Tensor:
        """Agree on the loss, on stopping, and on which parameters have a gradient; set the
        gradients.
        """
        mine = torch.tensor(
            [bool(self.signals), *(g is not None for g in gradients)], dtype=loss.dtype
        )
        total = self.world.total(torch.cat((loss[None], mine.to(loss.device))))
        self.stopping, *counts = (total[1:] > 0).tolist()
        sums: list[Tensor] = []
        tables: list[Tensor] = []
        for p, gradient, any_has in zip(self.parameters, gradients, counts, strict=True):
            if any_has:
                p.grad = torch.zeros_like(p) if gradient is None else gradient
                (tables if id(p) in self._tables else sums).append(p.grad)
        self.world.sum(sums, tables)
        return total[0]


def _sum_of(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """The sum, in the left one's place; None has nothing to add."""
    return right if left is None else left if right is None else left.add_(right)


def update(gradients: Gradients, optimizer: OptimizerGroup, step: int) -> tuple[float, float]:
    """Compute the gradients of 0-based `step`, clip and apply them; returns loss and gradient
    norm, both before the update. Raises UserError (DIVERGED), before any weight is changed."""
    run = gradients.run
    model = gradients.model
    loss = gradients.compute(step)
    norm = model.gradient_norm()
    loss_value, norm_value = torch.stack([loss.double(), norm.double()]).tolist()
    if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
        raise _diverged(step, model, loss_value, norm_value)
    if run.gradient_clipping is not None:
        clip_grads_with_norm_(gradients.parameters, run.gradient_clipping, norm)
    again = partial(_compute_again, gradients, optimizer, step)
    of_kind = partial(run.schedule.of_kind, step=step, steps=run.steps)
    optimizer.step(step, run.schedule.factor(step, run.steps), again, of_kind)
    optimizer.zero_grad()
    return loss_value, norm_value


@torch.enable_grad()
def _compute_again(gradients: Gradients, optimizer: OptimizerGroup, step: int) -> Tensor:
    """An optimizer's closure: gradients of a step's batch with the weights as they are now;
    returns its loss."""
    optimizer.zero_grad()
    return gradients.compute(step)


def _diverged(step: int, model: Transformer, loss: float, norm: float) -> UserError:
    bad = [
        n
        for n, p in model.named_parameters()
        if p.grad is not None and not p.grad.isfinite().all()
    ]
    where = (
        f"; first gradient that is not finite: {bad[0]} (and {len(bad) - 1} more)" if bad else ""
    )
    return UserError(
        f"step {step + 1}: loss {loss}, gradient norm {norm}",
        why=f"a number stopped being finite{where}",
        fix="a lower learning rate, a longer warm-up, or " + set_to("gradient_clipping", 1),
        kept=f"the weights after step {step}: this step's update was not applied",
        code=errors.DIVERGED,
    )
