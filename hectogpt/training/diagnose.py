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


@dataclass(frozen=True)
class Finding:
    """The result of a step that was computed without its update.

    Attributes:
        step: its number, from 1.
        loss: nats per token; may be nan or infinite.
        grad_norm: the gradient norm; may be nan or infinite.
        stage: "weights", "forward" or "backward", where the first value that is not finite
            appears; None if all are finite.
        module: the module whose weights, output or gradient it is.
        rows: the rows of the batch, from 0, whose loss is not finite; if there are none, the three
            with the largest losses.
        sequences: the numbers of these rows among the sequences of the training text; () if a data
            order has cut the batch.
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
    """Compute the session's next step, without its update.

    Raises UserError if the run has no step left.
    """
    run = session.run
    model = session.model
    machine = session.machine
    batches = setup.make_batches(run, session.corpus)
    # Stage -> its first module. Inner modules finish before outer ones, so it is an innermost one.
    first: dict[str | None, str] = {}

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            note("forward", name, output)
            if output.requires_grad:
                output.register_hook(partial(note, "backward", name))

    def note(stage: str, name: str, numbers: Tensor) -> None:
        if not numbers.isfinite().all():
            first.setdefault(stage, name)

    for name, p in model.named_parameters():
        note("weights", name, p)
    hooks = [
        module.register_forward_hook(partial(look, name))
        for name, module in model.named_modules()
        if name
    ]
    model.train()
    try:
        loss = Gradients(run, model, batches, machine).compute(session.step)
    finally:
        for hook in hooks:
            hook.remove()
    norm = float(model.gradient_norm())
    note("forward", "lm_head (the loss)", loss)
    for name, p in reversed(list(model.named_parameters())):
        if p.grad is not None:
            note("backward", name, p.grad)
    stage = next((stage for stage in ("weights", "forward", "backward") if stage in first), None)
    model.zero_grad(set_to_none=True)
    batch = torch.from_numpy(batches.at(session.step)).to(machine.device)
    with torch.no_grad(), machine.autocast():
        each = model.losses(batch[:, :-1], batch[:, 1:], precision=machine.head_dtype)[1]
    losses = each.view(len(batch), -1).mean(1).tolist()
    bad = [row for row, value in enumerate(losses) if not math.isfinite(value)]
    rows = bad or sorted(range(len(losses)), key=lambda row: -losses[row])[:3]
    return Finding(
        step=session.step + 1,
        loss=float(loss),
        grad_norm=norm,
        stage=stage,
        module=first.get(stage),
        rows=tuple(rows),
        sequences=()
        if batches.cuts
        else tuple(batches.numbers(session.step)[row] for row in rows),
        row_losses=tuple(losses[row] for row in rows),
    )
