"""Recompute a step to find where its values stop being finite: in which module, on which text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hectogpt.training import setup
from hectogpt.training.loop import Gradients
from hectogpt.training.session import Session

Tensors = dict[str, Tensor]
HEAD = "lm_head"  # computes the loss without being called as a module


@dataclass(frozen=True)
class Finding:
    """The result of a step that was computed without its update.

    Attributes:
        step: the number of the step, from 1.
        loss: nats per token; may be nan or infinite.
        grad_norm: the gradient norm; may be nan or infinite.
        stage: the stage at which the first value that is not finite appears: "weights", "forward"
            or "backward". None if all values are finite.
        module: the module whose weights, output or gradient contain that value.
        rows: the rows of the batch (counted from 0) whose loss is not finite. If there are none,
            the three rows with the largest losses.
        sequences: the indices of these rows among the sequences of the training text. Empty if a
            data order has cut the batch.
        row_losses: the losses of these rows.
    """

    step: int
    loss: float
    grad_norm: float
    stage: str | None
    module: str | None
    rows: tuple[int, ...]
    sequences: tuple[int, ...]
    row_losses: tuple[float, ...]


def diagnose(session: Session) -> Finding:
    """Compute the session's next step, without its update, and examine its values.

    Raises UserError if the run has no step left.
    """
    model = session.model
    machine = session.machine
    batches = setup.make_batches(session.run, session.corpus)
    stages = {"weights": {name: p.data for name, p in model.named_parameters()}}
    loss, stages["forward"], stages["backward"] = trace(session)
    norm = float(model.gradient_norm())
    model.zero_grad(set_to_none=True)
    # Inner modules finish before outer ones, so the first module found is an innermost one.
    wrong = (
        (stage, name.partition(" ")[0])
        for stage, tensors in stages.items()
        for name, tensor in tensors.items()
        if not tensor.isfinite().all()
    )
    stage, module = next(wrong, (None, None))
    batch = torch.from_numpy(batches.at(session.step)).to(machine.device)
    with torch.no_grad(), machine.autocast():
        each = model.losses(batch[:, :-1], batch[:, 1:], precision=machine.head_dtype)[1]
    losses = each.view(len(batch), -1).mean(1).tolist()
    bad = [row for row, value in enumerate(losses) if not math.isfinite(value)]
    rows = bad or sorted(range(len(losses)), key=lambda row: -losses[row])[:3]
    return Finding(
        step=session.step + 1,
        loss=loss,
        grad_norm=norm,
        stage=stage,
        module=module,
        rows=tuple(rows),
        sequences=()
        if batches.cuts
        else tuple(batches.numbers(session.step)[row] for row in rows),
        row_losses=tuple(losses[row] for row in rows),
    )


def trace(session: Session) -> tuple[float, Tensors, Tensors]:
    """Compute a session's next step without its update.

    Returns the step's loss, the outputs of all modules, and the gradients of outputs and weights.
    Outputs and gradients are in the order of computation. With several leaves, each output and its
    gradient appear once per leaf.
    """
    forward: Tensors = {}
    gradient: Tensors = {}

    def keep(into: Tensors, name: str, tensor: Tensor) -> None:
        calls = sum(known.partition(" ")[0] == name for known in into)
        into[f"{name} (call {calls + 1})" if calls else name] = tensor.detach().clone()

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            keep(forward, name, output)
            if output.requires_grad:
                output.register_hook(partial(keep, gradient, name))

    model = session.model
    hooks = [m.register_forward_hook(partial(look, n)) for n, m in model.named_modules() if n]
    batches = setup.make_batches(session.run, session.corpus)
    model.train()
    try:
        loss = Gradients(session.run, model, batches, session.machine).compute(session.step)
    finally:
        for hook in hooks:
            hook.remove()
    keep(forward, HEAD, loss)
    for name, p in reversed(list(model.named_parameters())):
        if p.grad is not None:
            keep(gradient, name, p.grad.to_dense())
    return float(loss), forward, gradient
