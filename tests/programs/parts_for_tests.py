"""A part with chance, as a user's own file may have one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hectogpt import InputPart


@dataclass(frozen=True)
class Drop(InputPart):
    """Dropout of the embedded tokens."""

    p: float = 0.2

    def build(self, d_model: int, vocab_size: int, norm: object) -> torch.nn.Module:
        return DropLayer(self.p)


class DropLayer(torch.nn.Dropout):
    def forward(self, x: torch.Tensor, ids: torch.Tensor, cache: object = None) -> torch.Tensor:
        return super().forward(x)
