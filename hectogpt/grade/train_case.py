"""A few training steps through the starter's own handles: the case, the right curve, and known wrong ones.

All rows of the data are the same, so that a shuffle, another order of reading or several epochs change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hectogpt.grade.computation import Computation
from hectogpt.grade.settings import Setting, Size, weights

SIZE = Size(d_model=24, n_heads=3, n_layers=1, context_length=12, vocab_size=31)
STEPS, BATCH, RATE = 6, 4, 3e-3


def clip_of(setting: Setting) -> float | None:
    """So small that AdamW's own eps is felt: that, unlike the direction, depends on the size of the gradient."""
    return 1e-6 if setting.name.endswith("clipped") else None


def model_setting() -> Setting:
    """The weights that training starts from."""
    return Setting("train model", "train", SIZE)


def chunks() -> Tensor:
    """[STEPS * BATCH, context_length] int64: the text to train on."""
    generator = torch.Generator().manual_seed(7)
    row = torch.randint(1, SIZE.vocab_size, (1, SIZE.context_length), generator=generator)
    return row.repeat(STEPS * BATCH, 1)


@dataclass(frozen=True)
class Curve:
    """name: "right", a known mistake, or a change that the bonus invites. what: the sentence for it."""

    name: str
    what: str
    losses: Tensor
    norms: Tensor
    changed: bool = False


Step = Callable[[torch.optim.Optimizer, list[Tensor], float | None], Tensor]


def norm_of(parameters: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]))


def clip(parameters: list[Tensor], limit: float | None) -> None:
    if limit is not None:
        factor = min(1.0, limit / (float(norm_of(parameters)) + 1e-6))
        for p in parameters:
            assert p.grad is not None
            p.grad.mul_(factor)


def right(optimizer: torch.optim.Optimizer, parameters: list[Tensor], limit: float | None) -> Tensor:
    norm = norm_of(parameters)
    clip(parameters, limit)
    optimizer.step()
    return norm


def unclipped(optimizer: torch.optim.Optimizer, parameters: list[Tensor], limit: float | None) -> Tensor:
    return right(optimizer, parameters, None)


def clipped_after(optimizer: torch.optim.Optimizer, parameters: list[Tensor], limit: float | None) -> Tensor:
    optimizer.step()
    norm = norm_of(parameters)
    clip(parameters, limit)
    return norm


def norm_after(optimizer: torch.optim.Optimizer, parameters: list[Tensor], limit: float | None) -> Tensor:
    clip(parameters, limit)
    norm = norm_of(parameters)
    optimizer.step()
    return norm


def by_value(optimizer: torch.optim.Optimizer, parameters: list[Tensor], limit: float | None) -> Tensor:
    norm = norm_of(parameters)
    if limit is not None:
        for p in parameters:
            assert p.grad is not None
            p.grad.clamp_(-limit, limit)
    optimizer.step()
    return norm


def clipped_before(optimizer: torch.optim.Optimizer, parameters: list[Tensor], limit: float | None) -> Tensor:
    """The gradients of the step are not there yet: what is clipped is nothing."""
    optimizer.step()
    return torch.zeros(())


def zeroed(optimizer: torch.optim.Optimizer, parameters: list[Tensor], limit: float | None) -> Tensor:
    return torch.zeros(())


def no_step(optimizer: torch.optim.Optimizer, parameters: list[Tensor], limit: float | None) -> Tensor:
    return norm_of(parameters)


def last_norm(optimizer: torch.optim.Optimizer, parameters: list[Tensor], limit: float | None) -> Tensor:
    norm = parameters[-1].grad
    assert norm is not None
    size = norm.norm()
    clip(parameters, limit)
    optimizer.step()
    return size


def summed_norms(optimizer: torch.optim.Optimizer, parameters: list[Tensor], limit: float | None) -> Tensor:
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).sum()
    clip(parameters, limit)
    optimizer.step()
    return norm


def squared_norm(optimizer: torch.optim.Optimizer, parameters: list[Tensor], limit: float | None) -> Tensor:
    return right(optimizer, parameters, limit) ** 2


def curve(
    setting: Setting,
    step: Step = right,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
    zero: bool = True,
    batches: int = STEPS,
) -> tuple[Tensor, Tensor]:
    """Losses and gradient norms, float32, of training our own computation."""
    state = {name: value.float().requires_grad_() for name, value in weights(model_setting()).items()}
    parameters = list(state.values())
    used = optimizer(parameters) if optimizer else torch.optim.AdamW(parameters, lr=RATE)
    losses, norms = [], []
    for _ in range(batches):
        loss = Computation(state, SIZE).loss(chunks()[:BATCH])
        if zero:
            used.zero_grad()
        loss.backward()
        norms.append(step(used, parameters, clip_of(setting)).detach())
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(norms)


MISTAKES: list[tuple[str, str, Step, bool]] = [
    ("no zero_grad", "Gradients are not set to zero between steps: they add up.", right, False),
    ("no clipping", "The gradient is not clipped.", unclipped, True),
    (
        "clipping after the step",
        "The gradient is clipped after the step, where it changes nothing.",
        clipped_after,
        True,
    ),
    ("norm after clipping", "The gradient norm is recorded after clipping.", norm_after, True),
    ("clipping by value", "Each number of the gradient is clipped by itself; the norm is meant.", by_value, True),
    ("clipping before backward", "The gradient is clipped before it has been computed.", clipped_before, True),
    ("zero_grad after backward", "The gradients are set to zero before they are used.", zeroed, True),
    ("no optimizer step", "The optimizer makes no step: the weights never change.", no_step, True),
    ("norm of one tensor", "The gradient norm is that of the last parameter alone.", last_norm, True),
    (
        "norms summed",
        "The norms of the parameters are summed; the norm of all of them together is asked for.",
        summed_norms,
        True,
    ),
    ("squared norm", "The square of the gradient norm is recorded.", squared_norm, True),
]

OPTIMIZERS: list[tuple[str, Callable[[list[Tensor]], torch.optim.Optimizer]]] = [
    ("Adam", lambda p: torch.optim.Adam(p, lr=RATE)),
    ("AdamW without weight decay", lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=0.0)),
    ("AdamW with weight decay 0.1", lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=0.1)),
    ("AdamW with betas 0.9 and 0.95", lambda p: torch.optim.AdamW(p, lr=RATE, betas=(0.9, 0.95))),
    (
        "AdamW with betas 0.9 and 0.95, weight decay 0.1",
        lambda p: torch.optim.AdamW(p, lr=RATE, betas=(0.9, 0.95), weight_decay=0.1),
    ),
    ("NAdam", lambda p: torch.optim.NAdam(p, lr=RATE)),
    ("RAdam", lambda p: torch.optim.RAdam(p, lr=RATE)),
    ("Adamax", lambda p: torch.optim.Adamax(p, lr=RATE)),
    ("Adagrad", lambda p: torch.optim.Adagrad(p, lr=RATE)),
    ("RMSprop", lambda p: torch.optim.RMSprop(p, lr=RATE)),
    ("SGD", lambda p: torch.optim.SGD(p, lr=RATE)),
    ("SGD with momentum 0.9", lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9)),
]


def curves(setting: Setting) -> Iterator[Curve]:
    """The right curve first, then known mistakes, then other optimizers; mistakes that change nothing are left out."""
    first = Curve("right", "", *curve(setting))
    yield first
    for name, what, step, zero in MISTAKES:
        losses, norms = curve(setting, step, zero=zero)
        if not (close(losses, first.losses) and close(norms, first.norms)):
            yield Curve(name, what, losses, norms)
    for name, make in OPTIMIZERS:
        yield Curve(
            name, f"The optimizer is {name}; compared with the same.", *curve(setting, optimizer=make), changed=True
        )


def close(a: Tensor, b: Tensor) -> bool:
    """Within 1e-3 of the spread: float32 sums in another order, through six steps."""
    return (
        a.shape == b.shape
        and bool(((a - b).abs() <= 1e-3 * b.abs().clamp(min=1e-9) + 0.0).all())
        and math.isfinite(float(a.sum()))
    )
