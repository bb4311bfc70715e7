"""Optimizers: for each the mathematics as a pure function, then a thin class around it.

Parameters are sorted by kind (embedding, other lookup table, position, matrix, head, head_bias, scalar), each kind with
its own rate; every parameter is in exactly one group. Rates depend on the step alone, so there is no scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adamw import adamw

from hectogpt.errors import UserError
from hectogpt.model.transformer import CausalAttention, Transformer
from hectogpt.values import Value

Kind = Literal["embedding", "table", "position", "matrix", "head", "head_bias", "scalar"]

# --- which parameter is what ------------------------------------------------------------------------------------------


def kinds(model: Transformer) -> dict[str, Kind]:
    """Name -> kind for every parameter, by the module it belongs to; shared parameters appear once."""
    modules = dict(model.named_modules())
    found: dict[str, Kind] = {}
    for name, _ in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        module = modules[path]
        if module is model.lm_head:
            found[name] = "head" if leaf == "weight" else "head_bias"
        elif module is model.position_embeddings:
            found[name] = "position"
        elif isinstance(module, nn.Embedding):
            found[name] = "embedding" if module is model.embeddings else "table"
        elif isinstance(module, nn.Linear) and leaf == "weight":
            found[name] = "matrix"
        else:
            found[name] = "scalar"
    return found


@dataclass(frozen=True)
class Rates:
    """One number for each kind that wants its own; None means the optimizer's number for all."""

    embedding: float | None = None
    table: float | None = None
    position: float | None = None
    matrix: float | None = None
    head: float | None = None
    head_bias: float | None = None
    scalar: float | None = None


# --- AdamW ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Optim(Value):
    """An optimizer and its rates; `build` gives the object that steps."""

    def build(self, model: Transformer) -> Optimizer:
        raise TypeError("choose AdamW, Muon or SOAPMuon")


@dataclass(frozen=True)
class AdamW(Optim):
    """Adam with decoupled weight decay (1711.05101). The defaults are PyTorch's, which the assignment uses.

    `decay_all=False` spares embeddings, biases and gains from weight decay. `rates` and `epsilons` are `lr` and `eps`
    of single kinds. An epsilon of the size of one token's gradient (about 1e-6 at 8,192 tokens a step) makes a row
    that one token has touched move less than a row that many have.

    With `row_fall` = p a row of embeddings, tables and head that n steps have touched keeps n^-p of the highest rate so
    far, however low the schedule has fallen: what a rare word's first tokens say counts as much late as early. A step
    touches a row whose gradient has an entry above `touches` (None: above 0). In a table only the words of the step
    have a gradient; in the head every row has, and a word that occurs one of about 1e-4 (at 8,192 tokens a step).
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_all: bool = True
    rates: Rates = field(default_factory=Rates)
    epsilons: Rates = field(default_factory=Rates)
    row_fall: float | None = None
    touches: Rates = field(default_factory=Rates)

    def __post_init__(self) -> None:
        if not (self.lr >= 0 and math.isfinite(self.lr)):
            raise UserError(f"optim.lr = {self.lr}", why="a learning rate is finite and not negative")
        if self.row_fall is not None and not self.row_fall >= 0:
            raise UserError(f"optim.row_fall = {self.row_fall}", why="rates fall with visits, so it is not negative")

    def build(self, model: Transformer) -> Optimizer:
        return Optimizer(self.parts(model, set(kinds(model))))

    def parts(self, model: Transformer, names: set[str]) -> list[Part]:
        """Torch optimizers over the named parameters, with one group per combination of settings."""
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        kind_of = kinds(model)
        for name, parameter in model.named_parameters():
            if name in names:
                settings = self._settings(kind_of[name])
                group = groups.setdefault(tuple(settings.values()), settings | {"params": []})
                group["params"].append(parameter)
        parts: list[Part] = []
        whole = [group for group in groups.values() if "touch" not in group]
        by_row = [group for group in groups.values() if "touch" in group]
        if whole:
            # fused: one pass over memory, 2.6 ms against 23 ms for 3.2 M parameters on two cores
            parts.append(torch.optim.AdamW(whole, betas=self.betas, fused=True))
        if by_row and self.row_fall is not None:
            parts.append(RowAdamW(by_row, self.betas, self.row_fall))
        return parts

    def _settings(self, kind: Kind) -> dict[str, Any]:
        def own(rates: Rates, default: float) -> float:
            value = getattr(rates, kind)
            return default if value is None else value

        lr = own(self.rates, self.lr)
        decay = self.weight_decay if self.decay_all or kind in ("matrix", "head") else 0.0
        settings = {"lr": lr, "base_lr": lr, "weight_decay": decay, "eps": own(self.epsilons, self.eps)}
        if self.row_fall is None or kind not in ("embedding", "table", "head"):
            return settings
        return settings | {"touch": own(self.touches, 0.0), "peak": 0.0}


class RowAdamW(torch.optim.Optimizer):
    """AdamW for matrices whose rows have rates of their own: the larger of the group's `lr`, which follows the
    schedule, and n^-fall times its highest so far, n the steps with a gradient above `touch` somewhere in the row."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], fall: float) -> None:
        super().__init__(groups, {"betas": betas, "fused": True})
        self.fall = fall
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.room = parameters[0].new_empty(max(p.numel() for p in parameters))  # for one table's move after another

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["peak"] = max(group["peak"], group["lr"])
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = p.new_zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                    state["visits"] = p.new_zeros(len(p), 1)
                state["visits"] += p.grad.amax(1, keepdim=True).maximum(-p.grad.amin(1, keepdim=True)) > group["touch"]
                rates = state["visits"].clamp(min=1).pow(-self.fall).mul_(group["peak"]).clamp_(min=group["lr"])
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                p.addcmul_(self._move(p.grad, state, group), rates)

    def _move(self, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
        """Where torch's fused Adam moves zeros at rate 1; its step becomes ours, row by row."""
        move = self.room[: grad.numel()].view_as(grad).zero_()
        averages = [state["exp_avg"]], [state["exp_avg_sq"]]
        beta1, beta2 = group["betas"]
        settings = {"beta1": beta1, "beta2": beta2, "lr": 1.0, "weight_decay": 0.0, "eps": group["eps"]}
        adamw([move], [grad], *averages, [], [state["step"]], fused=True, amsgrad=False, maximize=False, **settings)
        return move


# --- Muon -------------------------------------------------------------------------------------------------------------

# Coefficients of the quintic p(s) = a s + b s^3 + c s^5 that pushes singular values towards 1 (K. Jordan's Muon).
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(
    update: Float[Tensor, "*batch rows columns"], steps: int = 5, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch rows columns"]:
    """Replace the singular values of each matrix by values near 1 (about .7 to 1.2), by Newton-Schulz iteration.

    Works on stacks of matrices of one shape. Source: Muon (Jordan et al. 2024), coefficients QUINTIC.
    """
    a, b, c = QUINTIC
    x = update.to(dtype)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # singular values at most 1, where the iteration converges
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(update.dtype)


@dataclass(frozen=True)
class Muon(Optim):
    """Momentum whose update is orthogonalised, for the hidden matrices; `rest` takes every other parameter.

    Queries, keys and values are three matrices to it. An update of shape (rows, columns) is scaled by
    sqrt(max(1, rows / columns)), Jordan's rule ("original" in torch.optim.Muon). Momentum rises from
    `momentum_start` to `momentum` over `momentum_steps` steps.
    """

    lr: float = 0.02
    momentum: float = 0.95
    momentum_start: float = 0.85
    momentum_steps: int = 0
    nesterov: bool = True
    weight_decay: float = 0.0
    newton_schulz_steps: int = 5
    rest: AdamW = field(default_factory=AdamW)

    def build(self, model: Transformer) -> Optimizer:
        matrices = {name for name, kind in kinds(model).items() if kind == "matrix"}
        others = set(kinds(model)) - matrices
        return Optimizer([MuonPart(self, list(_whole_matrices(model, matrices))), *self.rest.parts(model, others)])

    def precondition(self, gradient: Tensor, momentum: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        """What is orthogonalised, for a stack of matrices at 0-based `step`; `state` is the stack's to keep."""
        return momentum


@dataclass(frozen=True)
class SOAPMuon(Muon):
    """SOAP (2409.11321) before Muon's orthogonalisation, as in modded-nanogpt's optimizer track: the momentum is turned
    into the eigenbases of the running means of G G^T and G^T G (both with `beta`), divided there by Adam's root mean
    square, and turned back. The bases follow by one power iteration with QR, at each of the first 20 steps and then at
    every `every`-th."""

    beta: float = 0.9
    every: int = 5

    def precondition(self, gradient: Tensor, momentum: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        for side, product in (("left", gradient @ gradient.mT), ("right", gradient.mT @ gradient)):
            if side not in state:
                state[side] = product
                state[side + "_basis"] = torch.linalg.eigh(product).eigenvectors
                continue
            state[side].lerp_(product, 1 - self.beta)
            if step < 20 or step % self.every == 0:
                state[side + "_basis"] = torch.linalg.qr(state[side] @ state[side + "_basis"]).Q
        left, right = state["left_basis"], state["right_basis"]
        square = (left.mT @ gradient @ right).square()
        state["square"] = state["square"].lerp_(square, 1 - self.beta) if "square" in state else square
        # A direction new to the basis has hardly any square yet: without a bound it would drown the others.
        turned = (left.mT @ momentum @ right / (state["square"].sqrt() + 1e-12)).clamp(-2.5, 2.5)
        return left @ turned @ right.mT


def _whole_matrices(model: Transformer, names: set[str]) -> Iterable[tuple[Tensor, int]]:
    """Each named parameter with the number of matrices stacked in its rows: 3 for W_qkv, else 1."""
    stacked = {id(m.W_qkv.weight) for m in model.modules() if isinstance(m, CausalAttention)}
    for name, parameter in model.named_parameters():
        if name in names:
            yield parameter, 3 if id(parameter) in stacked else 1


class MuonPart(torch.optim.Optimizer):
    """Muon over (parameter, stacked matrices) pairs; matrices of one shape are orthogonalised as one batch."""

    def __init__(self, config: Muon, parameters: list[tuple[Tensor, int]]) -> None:
        self.config, self.stacks = config, dict(parameters)
        group = {"params": list(self.stacks), "lr": config.lr, "base_lr": config.lr, "momentum": config.momentum}
        group["step"] = 0
        super().__init__([group], {})

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
            update = self.config.precondition(p.grad.view(stack), update.view(stack), state, group["step"])
            for whole, part in zip(p.view(stack), update, strict=True):
                by_shape.setdefault(tuple(part.shape), []).append((whole, part))
        for (rows, columns), pairs in by_shape.items():
            updates = orthogonalize(torch.stack([u for _, u in pairs]), self.config.newton_schulz_steps)
            scale = math.sqrt(max(1.0, rows / columns))
            for (p, _), update in zip(pairs, updates, strict=True):
                p.mul_(1 - group["lr"] * self.config.weight_decay).add_(update, alpha=-group["lr"] * scale)


# --- the object the loop drives ---------------------------------------------------------------------------------------

Part = torch.optim.Optimizer


class Optimizer:
    """One or more torch optimizers stepped together, their rates set from the schedule's factor."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def parameters(self) -> list[Tensor]:
        return [p for part in self.parts for group in part.param_groups for p in group["params"]]

    def step(self, step: int, factor: float) -> None:
        """Apply the gradients of 0-based `step` with every base rate times `factor`."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["base_lr"] * factor
            if isinstance(part, MuonPart):
                part.param_groups[0].update(momentum=_momentum(part.config, step), step=step)
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    @property
    def lr(self) -> float:
        """The largest current rate of the first part, for display."""
        return max(cast(float, group["lr"]) for group in self.parts[0].param_groups)


def _momentum(config: Muon, step: int) -> float:
    if step >= config.momentum_steps:
        return config.momentum
    return config.momentum_start + (config.momentum - config.momentum_start) * step / config.momentum_steps
