"""Muon for the hidden matrices: momentum with an orthogonalised update; optionally after SOAP."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hectogpt.kernels.dtypes import float32_by_onednn, prefers_bf16
from hectogpt.model import Transformer
from hectogpt.model.attention import CausalAttention
from hectogpt.training.optim.adamw import AdamW
from hectogpt.training.optim.groups import Optim, OptimizerGroup, QuickOptimizer, kinds

# Coefficients of the quintic p(s) = a s + b s^3 + c s^5, which pushes singular values towards 1
# (Jordan's Muon).
QUINTIC = (3.4445, -4.7750, 2.0315)
Stack = Float[Tensor, "stack rows columns"]  # matrices of the same shape


def orthogonalize(
    update: Float[Tensor, "*batch rows columns"],
    steps: int = 5,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*batch rows columns"]:
    """Move the singular values of each matrix close to 1 (about 0.7 to 1.2) by Newton-Schulz.

    Works on stacks of matrices of the same shape. Source: Muon (Jordan et al. 2024), coefficients
    QUINTIC.
    """
    a, b, c = QUINTIC
    x = update.to(dtype)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    # This makes all singular values at most 1, so that the iteration converges.
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(update.dtype)


@dataclass(frozen=True)
class Muon(Optim):
    """Muon for the hidden matrices; the AdamW `rest` handles all other parameters.

    Queries, keys and values count as three matrices. An update of shape (rows, columns) is scaled
    by sqrt(max(1, rows / columns)), Jordan's rule ("original" in torch.optim.Muon). Momentum rises
    from `momentum_start` to `momentum` over `momentum_steps` steps.

    `newton_schulz_dtype` is the dtype of the products in the orthogonalisation. bfloat16, Jordan's
    choice, is used where it makes large products faster; other CPUs use float32 instead.
    """

    lr: float = 0.02
    momentum: float = 0.95
    momentum_start: float = 0.85
    momentum_steps: int = 0
    nesterov: bool = True
    weight_decay: float = 0.0
    newton_schulz_steps: int = 5
    newton_schulz_dtype: Literal["float32", "bfloat16"] = "float32"
    rest: AdamW = field(default_factory=AdamW)

    def build(self, model: Transformer) -> OptimizerGroup:
        kind_of = kinds(model)
        matrices = {name for name, kind in kind_of.items() if kind == "matrix"}
        optimizer = MuonOptimizer(self, list(whole_matrices(model, matrices)))
        return OptimizerGroup([optimizer, *self.rest.optimizers(model, set(kind_of) - matrices)])

    def product_dtype(self, updates: Tensor) -> torch.dtype:
        """The dtype in which these updates are orthogonalised on their device."""
        quick = updates.device.type != "cpu" or prefers_bf16()
        return (
            torch.bfloat16 if quick and self.newton_schulz_dtype == "bfloat16" else torch.float32
        )

    def momentum_at(self, step: int) -> float:
        """The momentum of 0-based `step`."""
        if step >= self.momentum_steps:
            return self.momentum
        return (
            self.momentum_start
            + (self.momentum - self.momentum_start) * step / self.momentum_steps
        )

    def products(self, dtype: torch.dtype) -> AbstractContextManager[object]:
        """Context manager for all products in this dtype; it may choose a faster library."""
        return nullcontext()

    def precondition(
        self, gradient: Stack, momentum: Stack, state: dict[str, Tensor], step: int
    ) -> Stack:
        """The matrices to orthogonalise, for a stack at 0-based `step`.

        `state` belongs to the stack and is kept between steps.
        """
        return momentum


def whole_matrices(model: Transformer, names: set[str]) -> Iterable[tuple[Tensor, int]]:
    """Yield each named parameter and the number of matrices stacked in it: 3 for W_qkv, else 1."""
    stacked = {
        id(m.W_qkv.weight)
        for m in model.modules()
        if isinstance(m, CausalAttention) and hasattr(m, "W_qkv")
    }
    for name, parameter in model.named_parameters():
        if name in names:
            yield parameter, 3 if id(parameter) in stacked else 1


class MuonOptimizer(QuickOptimizer):
    """Muon over pairs (parameter, number of matrices stacked in it).

    Matrices of the same shape are orthogonalised as one batch.
    """

    def __init__(self, config: Muon, matrices: list[tuple[Tensor, int]]) -> None:
        self.config = config
        self.stacks = dict(matrices)
        group = {
            "params": list(self.stacks),
            "lr": config.lr,
            "momentum": config.momentum,
            "step": 0,
        }
        super().__init__([group], {})

    def set_step(self, step: int, factor: float) -> None:
        """Set the momentum of 0-based `step`."""
        self.param_groups[0].update(momentum=self.config.momentum_at(step), step=step)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            buffer = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(buffer, group["momentum"]) if self.config.nesterov else buffer
            stack = (self.stacks[p], -1, p.shape[-1])
            with self.config.products(p.dtype):
                update = self.config.precondition(
                    p.grad.view(stack), update.view(stack), state, group["step"]
                )
            for matrix, part in zip(p.view(stack), update, strict=True):
                by_shape.setdefault(tuple(part.shape), []).append((matrix, part))
        for (rows, columns), pairs in by_shape.items():
            with self.config.products(pairs[0][1].dtype):
                stacked = torch.stack([u for _, u in pairs])
                updates = orthogonalize(
                    stacked, self.config.newton_schulz_steps, self.config.product_dtype(stacked)
                )
            scale = math.sqrt(max(1.0, rows / columns))
            for (p, _), update in zip(pairs, updates, strict=True):
                p.mul_(1 - group["lr"] * self.config.weight_decay).add_(
                    update, alpha=-group["lr"] * scale
                )


# --- SOAP: the momentum is first rescaled in the eigenbases of the gradients' covariances


@dataclass(frozen=True)
class SOAPMuon(Muon):
    """SOAP (2409.11321) before Muon's orthogonalisation, as in modded-nanogpt's optimizer track.

    The momentum is rotated into the eigenbases of the running means of G G^T and G^T G (both with
    `beta`), divided there by Adam's root mean square, and rotated back. The bases are updated by
    one power iteration with QR, at each of the first 20 steps and then at every `every`-th step.
    """

    beta: float = 0.9
    every: int = 5
    long_sides: ClassVar[bool] = True

    def products(self, dtype: torch.dtype) -> AbstractContextManager[object]:
        return float32_by_onednn(dtype)

    def precondition(
        self, gradient: Stack, momentum: Stack, state: dict[str, Tensor], step: int
    ) -> Stack:
        beta = self.beta
        every = self.every
        rows, columns = gradient.shape[-2:]
        both = self.long_sides or rows == columns
        if rows > columns and not both:
            return self.precondition(gradient.mT, momentum.mT, state, step).mT
        for side, g in (("left", gradient), ("right", gradient.mT))[: 1 + both]:
            product = g @ g.mT
            if side not in state:
                state[side] = product
                state[side + "_basis"] = torch.linalg.eigh(product).eigenvectors
                continue
            state[side].lerp_(product, 1 - beta)
            if step < 20 or step % every == 0:
                state[side + "_basis"] = torch.linalg.qr(state[side] @ state[side + "_basis"]).Q
        left = state["left_basis"]
        right = state.get("right_basis")

        def rotated(x: Tensor) -> Tensor:
            return left.mT @ x if right is None else left.mT @ x @ right

        square = rotated(gradient).square()
        state["square"] = state["square"].lerp_(square, 1 - beta) if "square" in state else square
        # In a direction that is new to the basis, the mean square is still tiny. Without a bound,
        # that direction would dominate the others.
        update = (rotated(momentum) / (state["square"].sqrt() + 1e-12)).clamp(-2.5, 2.5)
        return left @ update if right is None else left @ update @ right.mT


@dataclass(frozen=True)
class OneSidedSOAPMuon(SOAPMuon):
    """SOAPMuon, but a matrix that is not square is rotated on its shorter side only.

    This is the paper's one-sided SOAP. Most of SOAP's time goes into the longer sides of an MLP's
    matrices.
    """

    long_sides: ClassVar[bool] = False
