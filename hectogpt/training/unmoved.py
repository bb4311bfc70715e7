"""Which trained tensors have never moved: a part that the loss does not reach, or that no optimizer updates."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from hectogpt.model import Transformer


class FirstNumbers:
    """The hashes of a model's trained tensors as they are now, to be compared with what they are later.

    A hash of all costs about 0.5 s a GB. What has moved is left out from then on, so later looks cost next to nothing.
    """

    def __init__(self, model: Transformer) -> None:
        self._hashes = {name: _hash(p) for name, p in model.named_parameters() if p.requires_grad and p.numel()}

    def unmoved(self, model: Transformer) -> list[str]:
        """Names of the tensors whose numbers are still all the same."""
        now = dict(model.named_parameters())
        self._hashes = {name: first for name, first in self._hashes.items() if _hash(now[name]) == first}
        return list(self._hashes)


def _hash(tensor: Tensor) -> bytes:
    numbers = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.sha256(numbers.data).digest()
