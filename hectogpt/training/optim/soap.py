"""SOAP before Muon: the momentum is rescaled in the eigenbases of the gradients' covariances, then orthogonalised."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hectogpt.kernels.dtypes import float32_by_onednn
from hectogpt.training.optim.muon import Muon, MuonOptimizer


@dataclass(frozen=True)
class SOAPMuon(Muon):
    """SOAP (2409.11321) before Muon's orthogonalisation, as in modded-nanogpt's optimizer track.

    The momentum is rotated into the eigenbases of the running means of G G^T and G^T G (both with `beta`), divided
    there by Adam's root mean square, and rotated back. The bases follow by one power iteration with QR, at each of the
    first 20 steps and then at every `every`-th.
    """

    old_fields: ClassVar[dict[str, str | None]] = {"wide": None, "wide_every": None}

    beta: float = 0.9
    every: int = 5

    def matrix_optimizer(self, matrices: list[tuple[Tensor, int]]) -> MuonOptimizer:
        return SOAPMuonOptimizer(self, matrices)


class SOAPMuonOptimizer(MuonOptimizer):
    """MuonOptimizer with SOAP as the preconditioner of its momentum."""

    config: SOAPMuon

    def products(self, dtype: torch.dtype) -> AbstractContextManager[object]:
        return float32_by_onednn(dtype)

    def precondition(
        self,
        gradient: Float[Tensor, "stack rows columns"],
        momentum: Float[Tensor, "stack rows columns"],
        state: dict[str, Tensor],
        step: int,
    ) -> Float[Tensor, "stack rows columns"]:
        beta, every = self.config.beta, self.config.every
        for side, product in (("left", gradient @ gradient.mT), ("right", gradient.mT @ gradient)):
            if side not in state:
                state[side] = product
                state[side + "_basis"] = torch.linalg.eigh(product).eigenvectors
                continue
            state[side].lerp_(product, 1 - beta)
            if step < 20 or step % every == 0:
                state[side + "_basis"] = torch.linalg.qr(state[side] @ state[side + "_basis"]).Q
        left, right = state["left_basis"], state["right_basis"]
        square = (left.mT @ gradient @ right).square()
        state["square"] = state["square"].lerp_(square, 1 - beta) if "square" in state else square
        # A direction new to the basis has hardly any square yet: without a bound it would drown the others.
        rotated = (left.mT @ momentum @ right / (state["square"].sqrt() + 1e-12)).clamp(-2.5, 2.5)
        return left @ rotated @ right.mT
