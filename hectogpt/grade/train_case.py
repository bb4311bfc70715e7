"""A few training steps through the starter's own handles: the case, the right curve, and known wrong ones.

All rows of the text differ, and the curves are computed from the rows that the submission took: a shuffle changes
nothing, and rows that are used again are seen.
"""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from hectogpt.grade.computation import Computation
from hectogpt.grade.laws import Setting, Size, weights

SIZE = Size(d_model=24, n_heads=3, n_layers=1, context_length=12, vocab_size=31)
STEPS, BATCH, RATE = 6, 4, 3e-3
ROWS = 3 * STEPS * BATCH  # so that a part may be held out, and no row has to come twice
NO_ROW = -2  # fills up the rows of shorter batches; a row that is not in the text is -1
TOLERANCE = 1e-3  # of each number: float32 sums in another order, through six steps


def clip_of(setting: Setting) -> float | None:
    """So small that AdamW's own eps is felt: that, unlike the direction, depends on the size of the gradient."""
    return 1e-6 if setting.name.endswith("clipped") else None


def model_setting() -> Setting:
    """The weights that training starts from."""
    return Setting("train model", "train", SIZE)


@lru_cache(maxsize=1)
def text() -> Tensor:
    """[ROWS, context_length] int64. The rows share a pattern, so that a loss falls, and no two are equal."""
    generator = torch.Generator().manual_seed(7)
    row = torch.randint(1, SIZE.vocab_size, (1, SIZE.context_length), generator=generator).repeat(ROWS, 1)
    other = torch.randint(1, SIZE.vocab_size, row.shape, generator=generator)
    return torch.where(torch.rand(row.shape, generator=generator) < 0.3, other, row)


def chunks() -> Tensor:
    """A copy of the text, to train on."""
    return text().clone()


def rows_of(ids: Tensor) -> list[int]:
    """The numbers of a batch's rows in the text, -1 for what is not in it; the last token of a row may be cut off."""
    known = {tuple(row[:length]): n for n, row in enumerate(text().tolist()) for length in (len(row), len(row) - 1)}
    return [known.get(tuple(row), -1) for row in ids.tolist()]


def padded(batches: list[list[int]]) -> Tensor:
    """[steps, rows] int64, filled up with NO_ROW."""
    width = max(map(len, batches), default=0)
    return torch.tensor([b + [NO_ROW] * (width - len(b)) for b in batches], dtype=torch.int64).reshape(
        len(batches), width
    )


@dataclass(frozen=True)
class Curve:
    """name: "right", or a known mistake. what: the sentence for it."""

    name: str
    what: str
    losses: Tensor
    norms: Tensor


Step = Callable[[Optimizer, list[Tensor], float | None], Tensor]


def norms_of(parameters: list[Tensor]) -> Tensor:
    return torch.stack([p.grad.norm() for p in parameters if p.grad is not None])


def clip(parameters: list[Tensor], limit: float | None) -> None:
    factor = 1.0 if limit is None else min(1.0, limit / (float(norms_of(parameters).norm()) + 1e-6))
    for p in parameters:
        assert p.grad is not None
        p.grad.mul_(factor)


def stepping(order: str, measure: Callable[[list[Tensor]], Tensor] = lambda p: norms_of(p).norm()) -> Step:
    """A step of training that does what the letters say, in order: c clip, v clip by value, n take the norm, s step."""

    def step(optimizer: Optimizer, parameters: list[Tensor], limit: float | None) -> Tensor:
        norm = torch.zeros(())
        for letter in order:
            if letter == "n":
                norm = measure(parameters)
            if letter == "c":
                clip(parameters, limit)
            if letter == "s":
                optimizer.step()
            if letter == "v" and limit is not None:
                torch.nn.utils.clip_grad_value_(parameters, limit)
        return norm

    return step


def curve(
    setting: Setting,
    batches: list[list[int]],
    step: Step = stepping("ncs"),  # noqa: B008
    zero: bool = True,
) -> tuple[Tensor, Tensor]:
    """Losses and gradient norms, float32, of training our own computation on these rows."""
    state = {name: value.float().requires_grad_() for name, value in weights(model_setting()).items()}
    parameters = list(state.values())
    used = AdamW(parameters, lr=RATE)
    losses, norms = [], []
    for rows in batches:
        loss = Computation(state, SIZE).loss(text()[rows])
        if zero:
            used.zero_grad()
        loss.backward()
        norms.append(step(used, parameters, clip_of(setting)).detach())
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(norms)


MISTAKES: list[tuple[str, str, Step, bool]] = [
    ("no zero_grad", "Gradients are not set to zero between steps: they add up.", stepping("ncs"), False),
    ("no clipping", "The gradient is not clipped.", stepping("ns"), True),
    ("clipping after the step", "The gradient is clipped after the step, where it changes nothing.", stepping("snc"), True),
    ("norm after clipping", "The gradient norm is recorded after clipping.", stepping("cns"), True),
    ("clipping by value", "Each number of the gradient is clipped by itself; the norm is meant.", stepping("nvs"), True),
    ("clipping before backward", "The gradient is clipped before it has been computed.", stepping("s"), True),
    ("no gradient at the step", "No gradient reaches the step: it is set to zero after backward, or the loss has none.", stepping(""), True),
    ("no optimizer step", "The optimizer makes no step: the weights never change.", stepping("n"), True),
    ("norm of one tensor", "The gradient norm is that of the last parameter alone.", stepping("ncs", lambda p: norms_of(p)[-1]), True),
    ("norms summed", "The norms of the parameters are summed; the norm of all of them together is asked for.",
     stepping("ncs", lambda p: norms_of(p).sum()), True),
    ("squared norm", "The square of the gradient norm is recorded.", stepping("ncs", lambda p: norms_of(p).norm() ** 2), True),
]  # fmt: skip


def curves(setting: Setting, batches: list[list[int]]) -> Iterator[Curve]:
    """The right curve first, then known mistakes; those that change nothing are left out."""
    first = Curve("right", "", *curve(setting, batches))
    yield first
    for name, what, step, zero in MISTAKES:
        losses, norms = curve(setting, batches, step, zero=zero)
        if not (close(losses, first.losses) and close(norms, first.norms)):
            yield Curve(name, what, losses, norms)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether each number is within the tolerance."""
    same = a.shape == b.shape and bool(((a - b).abs() <= TOLERANCE * b.abs().clamp(min=1e-9)).all())
    return same and math.isfinite(float(a.sum()))


# Batches that are no way to read a text: (whether it is so, name, sentence), tried in order.
BATCHES: list[tuple[Callable[[list[list[int]]], bool], str, str]] = [
    (lambda b: any(len(rows) != BATCH for rows in b), "batches of another size",
     "A batch does not have batch_size rows."),
    (lambda b: len(b) > 1 and all(rows == b[0] for rows in b), "one batch for ever",
     "Every step trains on the same rows of the text."),
    (lambda b: any(len(set(rows)) < len(rows) for rows in b), "one row many times in a batch",
     "The rows of a batch are not all different."),
    (lambda b: any(set(one) & set(two) for one, two in itertools.pairwise(b)) and all(sorted(r) == list(range(min(r), min(r) + len(r))) for r in b),
     "batches overlap", "The batches overlap: a step begins inside the batch of the one before."),
]  # fmt: skip


def fault_of_batches(batches: list[list[int]]) -> tuple[str, str] | None:
    """Name and sentence of what is wrong with the batches."""
    return next(((name, what) for applies, name, what in BATCHES if applies(batches)), None)
