"""The vocabulary head, forward and backward: ours against F.cross_entropy and F.linear_cross_entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.race import Lap, Race, Row, Work, timed, weighed
from hectogpt.model.fused_ce import How, fused_losses

PACKAGES = ()
RIVAL = "linear_cross_entropy"  # PyTorch's own fused head
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Setting(NamedTuple):
    """Width, predictions that are timed (seconds are linear in them), and tokens of the vocabulary. Memory is measured
    with `memory_rows` predictions."""

    d: int
    rows: int
    vocab: int = 50257
    memory_rows: int = 8192


SETTINGS = {
    "33": Setting(33, 8192),
    "128": Setting(128, 8192),
    "256": Setting(256, 4096),
    "tiny": Setting(32, 512, 512, 512),
}


def chunked(rows: int) -> Loss:
    """PyTorch's own fused head, chunked over rows only."""
    options = torch.nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=rows)
    return lambda x, weight, targets: F.linear_cross_entropy(x, weight, targets, options=options)


def ours(x: Tensor, weight: Tensor, targets: Tensor, precision: torch.dtype | None) -> Tensor:
    """The loss of our fused head."""
    return fused_losses(x, weight, targets, how=How(precision=precision, kernels=True))[0]


RIVALS = {f"{RIVAL} {rows}": chunked(rows) for rows in (128, 256, 512)}
CONTENDERS: dict[str, Loss] = {
    "ours bf16": partial(ours, precision=torch.bfloat16),
    "ours fp32": partial(ours, precision=None),
    "plain": lambda x, weight, targets: F.cross_entropy(F.linear(x, weight), targets),
}


def problem(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of unit scale, a head whose logits have a deviation near 1, random targets."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(setting.vocab, setting.d, generator=g).mul_(setting.d**-0.5)
    x = torch.randn(setting.memory_rows, setting.d, generator=g)
    return x.requires_grad_(), weight.requires_grad_(), torch.randint(setting.vocab, (len(x),), generator=g)


def both_passes(loss: Loss, x: Tensor, weight: Tensor, targets: Tensor) -> Work:
    """One forward and backward pass."""

    def work() -> None:
        x.grad = weight.grad = None
        loss(x, weight, targets).backward()

    return work


def prepare(setting: str, contender: str, folder: str) -> dict[str, Lap]:
    """Both passes. Their inputs exist before memory is measured; the weight's gradient counts."""
    x, weight, targets = problem(SETTINGS[setting])
    (torch.ones(64, 64, requires_grad=True) @ torch.ones(64, 64)).sum().backward()

    def lap(rows: int) -> Lap:
        some = x.detach()[:rows].requires_grad_()
        return timed(both_passes((CONTENDERS | RIVALS)[contender], some, weight, targets[:rows]))

    return {"step": lap(SETTINGS[setting].rows), "few": lap(512), "memory": weighed(lap(len(x)))}


def measure(setting: str, race: Race) -> Iterator[tuple[str, list[Row]]]:
    """Median seconds, ratios to plain, peak memory. PyTorch's head has the chunk size that is quickest here."""
    (trial,) = race.run(__name__, setting, list(RIVALS), ["few"])
    rival = min(RIVALS, key=lambda name: trial.median(name) if name not in trial.lost else math.inf)
    (laps,) = race.run(__name__, setting, [*CONTENDERS, rival], warm_up=["memory"])

    def figures(name: str) -> dict[str, Any]:
        return {
            "seconds": round(laps.median(name), 3),
            "plain_over_this": laps.ratio("plain", name),
            "peak_mb": laps.facts[name]["peak_mb"],
            "plain_memory_over_this": laps.memory("plain", name),
        }

    chosen = SETTINGS[setting]
    fixed = {"d": chosen.d, "rows": chosen.rows, "memory_rows": chosen.memory_rows}
    yield "head: forward and backward", laps.rows(figures, **fixed)
