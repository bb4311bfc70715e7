"""The training loop, a generator of `Step` records: whoever drives it decides what happens between steps.

If the loss or the gradient norm is not finite, the run stops before the optimizer step, so weights never become NaN.
This costs one device sync per step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from hectogpt import errors
from hectogpt.data import Batches
from hectogpt.errors import UserError
from hectogpt.model import Transformer
from hectogpt.train.optim import OptimizerGroup
from hectogpt.train.precision import Machine
from hectogpt.train.run import Run


@dataclass(frozen=True)
class Step:
    """One optimizer step. `number` counts from 1; tokens: read so far; loss (nats per token) and grad_norm (before
    clipping) belong to the weights before the update; `seconds` is the step's own time."""

    number: int
    tokens: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float


def steps(
    run: Run, model: Transformer, optimizer: OptimizerGroup, batches: Batches, machine: Machine, start: int = 0
) -> Iterator[Step]:
    """Train from 0-based step `start` to the run's end. Raises UserError (DIVERGED) at a number that is not finite."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    tokens = start * run.data.batch_size * run.data.seq_len
    model.train()
    for step in range(start, run.steps):
        begun = time.perf_counter()
        batch = torch.from_numpy(batches.at(step)).to(machine.device, non_blocking=True)
        loss = accumulate(run, model, batch, machine)
        norm = model.gradient_norm()
        loss_value, norm_value = torch.stack((loss.double(), norm.double())).tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise _diverged(step, model, loss_value, norm_value)
        if run.gradient_clipping is not None:
            clip_grads_with_norm_(parameters, run.gradient_clipping, norm)
        optimizer.step(step, run.schedule.factor(step, run.steps))
        optimizer.zero_grad()
        tokens += batch.numel()
        yield Step(step + 1, tokens, loss_value, norm_value, optimizer.lr, time.perf_counter() - begun)


def accumulate(run: Run, model: Transformer, batch: Tensor, machine: Machine) -> Tensor:
    """Add up gradients of the batch's mean loss, `micro_batch` rows at a time; each token weighs the same."""
    n_targets = batch.shape[0] * (batch.shape[1] - 1)
    total = torch.zeros((), dtype=torch.float64 if machine.device.type != "mps" else torch.float32)
    total = total.to(machine.device)
    for rows in batch.split(run.data.micro_batch or run.data.batch_size):
        with machine.autocast():
            loss = model.loss(rows[:, :-1], rows[:, 1:], reduction="sum", precision=machine.head_dtype) / n_targets
        loss.backward()
        total += loss.detach()
    return total


def _diverged(step: int, model: Transformer, loss: float, norm: float) -> UserError:
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    where = f"; first gradient that is not finite: {bad[0]} (and {len(bad) - 1} more)" if bad else ""
    return UserError(
        f"step {step + 1}: loss {loss}, gradient norm {norm}",
        why=f"a number stopped being finite{where}",
        fix="a lower learning rate, a longer warm-up, or set gradient_clipping to 1",
        kept=f"the weights after step {step}: this step's update was not applied",
        code=errors.DIVERGED,
    )
