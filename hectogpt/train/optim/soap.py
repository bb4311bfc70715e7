"""SOAP before Muon: the momentum is rescaled in the eigenbases of the gradients' covariances, then orthogonalised."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hectogpt.errors import UserError
from hectogpt.model.cpu_kernels import float32_by_onednn
from hectogpt.train.optim.muon import Muon, MuonOptimizer, orthogonalize


@dataclass(frozen=True)
class SOAPMuon(Muon):
    """SOAP (2409.11321) before Muon's orthogonalisation, as in modded-nanogpt's optimizer track.

    The momentum is rotated into the eigenbases of the running means of G G^T and G^T G (both with `beta`), divided
    there by Adam's root mean square, and rotated back. The bases follow by one power iteration with QR, at each of the
    first 20 steps and then at every `every`-th.

    wide: how a matrix with one side longer than the other is rescaled. "whole": the long side n has a basis of n x n
    numbers. "blocks": the long side is cut into parts of the short side's length (the last may be shorter), and each
    part is a matrix of its own, which takes a fraction of the time. Muon orthogonalises the whole in both cases.

    wide_every: a long side's basis follows only at one in so many of the steps at which the others follow. The matrices
    take turns, so that every step costs about the same.

    newton_schulz_dtype: of the products of Muon's orthogonalisation. bfloat16 (Muon's own choice) is quicker on
    processors that multiply it; others compute in float32 all the same.
    """

    beta: float = 0.9
    every: int = 5
    wide: Literal["whole", "blocks"] = "whole"
    wide_every: int = 1
    newton_schulz_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("wide_every", self.wide_every)):
            if value < 1:
                raise UserError(f"optim.{name} = {value}", why="it counts steps, so it is at least 1")

    def follows(self, step: int, wide: bool, turn: int) -> bool:
        """Whether the basis of a side follows at 0-based `step`; turn: the matrix's number."""
        if step >= 20 and step % self.every:
            return False
        count = step if step < 20 else 20 + (step - 20) // self.every  # how many such steps came before
        return not wide or (count + turn) % self.wide_every == 0

    def matrix_optimizer(self, matrices: list[tuple[Tensor, int]]) -> MuonOptimizer:
        return SOAPMuonOptimizer(self, matrices)


class SOAPMuonOptimizer(MuonOptimizer):
    """MuonOptimizer with SOAP as the preconditioner of its momentum."""

    config: SOAPMuon

    def orthogonal(self, updates: Float[Tensor, "matrix rows columns"]) -> Float[Tensor, "matrix rows columns"]:
        on_cpu = updates.device.type == "cpu"
        quick = not on_cpu or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        narrow = quick and self.config.newton_schulz_dtype == "bfloat16"
        dtype = torch.bfloat16 if narrow else torch.float32
        return orthogonalize(updates, self.config.newton_schulz_steps, dtype)

    def products(self, dtype: torch.dtype) -> AbstractContextManager[object]:
        return float32_by_onednn(dtype)

    def precondition(
        self,
        gradient: Float[Tensor, "stack rows columns"],
        momentum: Float[Tensor, "stack rows columns"],
        state: dict[str, Tensor],
        step: int,
        turn: int = 0,
    ) -> Float[Tensor, "stack rows columns"]:
        if self.config.wide == "whole":
            return self.rescale(gradient, momentum, state, step, turn)
        blocks = self.rescale(squares(gradient), squares(momentum), state, step, turn)
        return from_squares(blocks, gradient.shape)

    def rescale(
        self,
        gradient: Float[Tensor, "stack rows columns"],
        momentum: Float[Tensor, "stack rows columns"],
        state: dict[str, Tensor],
        step: int,
        turn: int = 0,
    ) -> Float[Tensor, "stack rows columns"]:
        """Adam's step in the eigenbases, for a stack of matrices with bases of their own."""
        beta = self.config.beta
        for side, product in (("left", gradient @ gradient.mT), ("right", gradient.mT @ gradient)):
            if side not in state:
                state[side] = product
                state[side + "_basis"] = torch.linalg.eigh(product).eigenvectors
                continue
            state[side].lerp_(product, 1 - beta)
            if self.config.follows(step, product.shape[-1] > min(gradient.shape[-2:]), turn):
                state[side + "_basis"] = torch.linalg.qr(state[side] @ state[side + "_basis"]).Q
        left, right = state["left_basis"], state["right_basis"]
        square = (left.mT @ gradient @ right).square()
        state["square"] = state["square"].lerp_(square, 1 - beta) if "square" in state else square
        # A direction new to the basis has hardly any square yet: without a bound it would drown the others.
        rotated = (left.mT @ momentum @ right / (state["square"].sqrt() + 1e-12)).clamp(-2.5, 2.5)
        return left @ rotated @ right.mT


def squares(matrices: Float[Tensor, "stack rows columns"]) -> Float[Tensor, "blocks side side"]:
    """Each matrix cut along its longer side into squares; zeros fill the last one up. Squares stay as they are."""
    rows, columns = matrices.shape[-2:]
    side, rest = min(rows, columns), -max(rows, columns) % min(rows, columns)
    if rows >= columns:
        padded = torch.nn.functional.pad(matrices, (0, 0, 0, rest)) if rest else matrices
        return padded.reshape(-1, side, side)
    padded = torch.nn.functional.pad(matrices, (0, rest)) if rest else matrices
    return padded.unflatten(-1, (-1, side)).transpose(1, 2).reshape(-1, side, side)


def from_squares(blocks: Float[Tensor, "blocks side side"], shape: torch.Size) -> Float[Tensor, "stack rows columns"]:
    """The inverse of `squares`, for matrices of this shape."""
    stack, rows, columns = shape
    side = blocks.shape[-1]
    if rows >= columns:
        return blocks.reshape(stack, -1, side)[:, :rows]
    return blocks.reshape(stack, -1, side, side).transpose(1, 2).reshape(stack, side, -1)[..., :columns]
