"""The vocabulary head, forward and backward: ours against F.cross_entropy and F.linear_cross_entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.race import Work, best, peak_memory, race, timed
from bench.record import Row
from hectogpt.kernels import native
from hectogpt.model.fused_ce import fused_losses

PACKAGES = ()
RIVAL = "linear_cross_entropy"  # PyTorch's own fused head
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Setting(NamedTuple):
    """Width, tokens of the vocabulary, and predictions: fewer where they are timed (seconds are linear in them)."""

    d: int
    vocab: int
    timed_rows: int
    rows: int


SETTINGS = {
    "33": Setting(33, 50257, 8192, 8192),
    "128": Setting(128, 50257, 8192, 8192),
    "256": Setting(256, 50257, 4096, 8192),
    "768": Setting(768, 50257, 2048, 2048),
    "tiny": Setting(32, 512, 512, 512),
}


def chunked(rows: int) -> Loss:
    """PyTorch's own fused head, chunked over rows only."""
    options = torch.nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=rows)
    return lambda x, weight, targets: F.linear_cross_entropy(x, weight, targets, options=options)


def ours(x: Tensor, weight: Tensor, targets: Tensor, precision: torch.dtype | None, kernels: bool = True) -> Tensor:
    """The loss of our fused head."""
    with native.using(kernels):
        return fused_losses(x, weight, targets, precision=precision)[0]


CONTENDERS: dict[str, Loss] = {
    "ours bf16": partial(ours, precision=torch.bfloat16),
    "ours bf16, torch's kernels": partial(ours, precision=torch.bfloat16, kernels=False),
    "ours fp32": partial(ours, precision=None),
    "plain": lambda x, weight, targets: F.cross_entropy(F.linear(x, weight), targets),
    **{f"{RIVAL} {rows}": chunked(rows) for rows in (128, 256, 512)},
}


def problem(setting: Setting, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of unit scale, a head whose logits have a deviation near 1, random targets."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(setting.vocab, setting.d, generator=g).mul_(setting.d**-0.5)
    x = torch.randn(rows, setting.d, generator=g)
    return x.requires_grad_(), weight.requires_grad_(), torch.randint(setting.vocab, (rows,), generator=g)


def both_passes(contender: str, x: Tensor, weight: Tensor, targets: Tensor) -> Work:
    """One forward and backward pass."""

    def work() -> None:
        x.grad = weight.grad = None
        CONTENDERS[contender](x, weight, targets).backward()

    return work


def prepare(setting: str, contender: str) -> Work:
    """Both passes; their inputs exist before, the weight's gradient counts."""
    native.use(True)
    inputs = problem(SETTINGS[setting], SETTINGS[setting].rows)
    (torch.ones(64, 64, requires_grad=True) @ torch.ones(64, 64)).sum().backward()
    return both_passes(contender, *inputs)


def quickest_rival(x: Tensor, weight: Tensor, targets: Tensor) -> str:
    """The chunk of PyTorch's head that is quickest on these rows."""
    rivals = [name for name in CONTENDERS if name.startswith(RIVAL)]
    return min(rivals, key=lambda name: best(both_passes(name, x, weight, targets), 1))


def measure(setting: str, rounds: int) -> Iterator[tuple[str, list[Row]]]:
    """Median seconds, ratios to plain, peak memory. PyTorch's head takes part with its quickest chunk alone."""
    chosen = SETTINGS[setting]
    native.use(True)
    x, weight, targets = problem(chosen, chosen.timed_rows)
    few = (x[:512].detach().requires_grad_(), weight, targets[:512])
    rival = quickest_rival(*few)
    names = [name for name in CONTENDERS if name == rival or not name.startswith(RIVAL)]
    for name in names:
        both_passes(name, *few)()
    laps = race({name: timed(both_passes(name, x, weight, targets)) for name in names}, rounds, warm_up=False)
    memory = {name: peak_memory(__name__, setting, name) for name in names}
    yield (
        "head: forward and backward",
        [
            {
                "contender": name,
                "d": chosen.d,
                "rows": chosen.timed_rows,
                "rounds": rounds,
                "seconds": round(laps.median(name), 3),
                "plain_over_this": round(laps.ratio("plain", name), 2),
                "memory_rows": chosen.rows,
                "peak_mb": round(memory[name] / 1e6, 1),
                "plain_memory_over_this": round(memory["plain"] / memory[name], 1),
            }
            for name in names
        ],
    )
