"""One step of training: the gradients of a batch, their norm, clipping, and the update.

`Session.steps` is the loop. If the loss or the gradient norm is not finite, the run stops before
the optimizer step, so the weights never become NaN. This check costs one device sync per step.
"""

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

from hectogpt import errors, torch_private
from hectogpt.data import Batches
from hectogpt.errors import SetTo, UserError
from hectogpt.model import Transformer
from hectogpt.model.fused_ce import convert
from hectogpt.training.losses import Predictions, total_of
from hectogpt.training.optim import OptimizerGroup
from hectogpt.training.parallel import ALONE, World, in_rows
from hectogpt.training.precision import Machine
from hectogpt.training.run import Run


@dataclass(frozen=True)
class Step:
    """One optimizer step. Loss and gradient norm belong to the weights before the update.

    Attributes:
        number: the number of the step, from 1.
        tokens: tokens read so far.
        loss: nats per token.
        grad_norm: the gradient norm before clipping.
        lr: the learning rate.
        seconds: the time of this step.
        own_tokens: tokens read in this step.
    """

    number: int
    tokens: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float
    own_tokens: int


@contextmanager
def seeded(seed: int, step: int, part: int, device: torch.device) -> Iterator[None]:
    """Context manager: make torch's random numbers a pure function of seed, step and part.

    So no random state needs to be saved. The previous state is restored on exit. Only a user's own
    parts need this, for dropout and other randomness: the package's parts have none.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(
            int(np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0] >> 1)
        )
        yield


@dataclass(eq=False)
class Gradients:
    """Compute the gradients of a run's batches.

    Each process computes the gradients of its own leaves. They are added up over all processes.

    Attributes:
        run: the run.
        model: its model.
        batches: its batches.
        machine: its device and dtypes.
        signals: signals that this process has received; the sequence may grow.
        world: the processes that share the run.
        stopping: True once any of the run's processes has received a signal; the run then ends
            with the last step computed.
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
        modules = self.model.modules()
        self._tables = {id(m.weight): m.sparse for m in modules if isinstance(m, nn.Embedding)}

    def compute(self, step: int) -> Tensor:
        """Set every parameter's gradient for the batch of 0-based `step`.

        Returns the batch's mean loss, float64 [].
        """
        self.world.start_step(step)
        return self.of_batch(self.batches.at(step), step)

    def of_batch(self, batch: np.ndarray, step: int) -> Tensor:
        """Set every parameter's gradient for a given batch, ids [rows, tokens].

        Every token has the same weight. Returns the batch's mean loss, float64 [].
        """
        leaves = self.run.data.leaves or 1
        own = leaves // self.world.size
        n_targets = batch.shape[0] * (batch.shape[1] - 1)
        first = self.world.rank * own
        # If a data order has cut the batch, leaves may differ by one row, and may be empty.
        bounds = [n * len(batch) // leaves for n in range(first, first + own + 1)]
        ids = torch.from_numpy(batch[bounds[0] : bounds[-1]]).to(
            self.machine.device, non_blocking=True
        )
        parts = ids.split([end - begin for begin, end in pairwise(bounds)])

        model = self.model
        converted: Tensor | None = None
        if own > 1:  # convert once for all leaves
            with torch.no_grad(), self.machine.autocast():
                matrix = model.lm_head.matrix(model.token_vectors())
                converted = convert(matrix, self.machine.head_dtype)

        def subtree(begin: int, end: int) -> list[Tensor | None]:
            """The sums of loss and gradients over parts[begin:end]."""
            if end - begin == 1:
                return self._leaf(parts[begin], step, first + begin, n_targets, converted)
            # The left subtree gets the largest power of two below the number of parts.
            middle = begin + (1 << (end - begin - 1).bit_length() - 1)
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
        self, rows: Tensor, step: int, leaf: int, n_targets: int, converted: Tensor | None
    ) -> list[Tensor | None]:
        """Compute a leaf's share of the batch's loss, and the leaf's gradients.

        Args:
            rows: the leaf's ids [rows, tokens].
            step: the 0-based step.
            leaf: the leaf's number.
            n_targets: the targets of the whole batch.
            converted: the head's matrix in the dtype of the head's products, if several leaves
                share it.

        Returns the leaf's share of the mean cross entropy, followed by the gradient of the run's
        loss for each parameter, or None for a parameter without one.
        """
        loss = torch.zeros((), dtype=torch.float64, device=rows.device)
        if len(rows):
            with seeded(self.run.seed, step, leaf, rows.device):
                with self.machine.autocast():
                    made = Predictions(
                        self.model,
                        rows[:, :-1],
                        rows[:, 1:],
                        self.machine.head_dtype,
                        min(step / self.run.steps, 1.0),
                        converted,
                    )
                    total = total_of(self.run.loss, made) / n_targets
                    loss += made.plain / n_targets
                total.backward()
        gradients = [
            g if g is None or not g.is_sparse else in_rows(g.shape, *torch_private.sum_rows(g))
            for g in (p.grad for p in self.parameters)
        ]
        self.model.zero_grad()
        return [loss, *gradients]

    @torch.no_grad()
    def _share(self, loss: Tensor, gradients: list[Tensor | None]) -> Tensor:
        """Set the gradients, summed over all processes, and return the batch's mean loss.

        The processes also agree on whether to stop, and on which parameters have a gradient.
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
                layout = torch.sparse_coo if self._tables.get(id(p)) else None
                p.grad = torch.zeros_like(p, layout=layout) if gradient is None else gradient
                (tables if id(p) in self._tables else sums).append(p.grad)
        self.world.sum(sums, tables)
        return total[0]


def _sum_of(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Add the right tensor to the left one, in place, and return the sum. None means zero."""
    return right if left is None else left if right is None else left.add_(right)


def update(gradients: Gradients, optimizer: OptimizerGroup, step: int) -> tuple[float, float]:
    """Compute the gradients of 0-based `step`, clip them, and update the weights.

    Returns the loss and the gradient norm, both before the update. Raises UserError (DIVERGED)
    before any weight is changed.
    """
    run = gradients.run
    model = gradients.model
    loss = gradients.compute(step)
    norm = model.gradient_norm()
    loss_value, norm_value = torch.stack([loss.double(), norm.double()]).tolist()
    if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
        raise _diverged(step, model, loss_value, norm_value)
    if run.gradient_clipping is not None:
        factor = run.gradient_clipping / (norm + 1e-6)
        if factor < 1:
            for gradient in model.gradients():
                gradient.mul_(factor)

    @torch.enable_grad()
    def again() -> Tensor:
        """The closure: compute the gradients of the same batch with the current weights."""
        model.zero_grad()
        return gradients.compute(step)

    of_kind = partial(run.schedule.of_kind, step=step, steps=run.steps)
    optimizer.step(step, run.schedule.factor(step, run.steps), again, of_kind)
    model.zero_grad()
    return loss_value, norm_value


def _diverged(step: int, model: Transformer, loss: float, norm: float) -> UserError:
    bad = [
        n
        for n, p in model.named_parameters()
        if p.grad is not None and not p.grad.to_dense().isfinite().all()
    ]
    where = (
        f"; first gradient that is not finite: {bad[0]} (and {len(bad) - 1} more)" if bad else ""
    )
    return UserError(
        f"step {step + 1}: loss {loss}, gradient norm {norm}",
        why=f"a number stopped being finite{where}",
        fix=("a lower learning rate, a longer warm-up, or ", SetTo("gradient_clipping", 1)),
        kept=f"the weights after step {step}: this step's update was not applied",
        code=errors.DIVERGED,
    )
