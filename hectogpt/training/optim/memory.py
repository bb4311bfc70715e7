"""Bounded steps for the numbers of an n-gram memory, beside the run's optimizer of everything else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hectogpt.errors import UserError
from hectogpt.model import Transformer
from hectogpt.model.memory import NgramTable
from hectogpt.training.optim.groups import OptimizerGroup, QuickOptimizer


@dataclass(frozen=True)
class MemorySGD:
    """Projected gradient descent for the numbers of the model's n-gram memory; without effect in a model without one.

    A number moves by lr times its gradient, at most by `largest_step`, all of it times n^-power, where n counts the
    steps in which its context occurred; it never becomes negative. The gradient of a number is large where the target
    was unlikely, so at a first visit a step is often the largest. The schedule does not apply: what is seen late should
    be learned as quickly as what is seen early.

    lr: for the gradient of a mean over 8,192 tokens; twice as many tokens want twice as much.
    """

    lr: float = 82.0
    largest_step: float = 0.1
    power: float = 0.5

    def __post_init__(self) -> None:
        for name in ("lr", "largest_step", "power"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"memory_optim.{name} = {getattr(self, name)}", why="it is finite and not negative")

    def take_tables(self, built: OptimizerGroup, model: Transformer) -> OptimizerGroup:
        """The optimizers with the memory's tables in one of their own, taken from the one that has them."""
        tables: dict[Tensor, NgramTable] = {m.weight: m for m in model.modules() if isinstance(m, NgramTable)}
        if not tables:
            return built
        for optimizer in built.optimizers:
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if p not in tables]
        return OptimizerGroup([*built.optimizers, BoundedSGD(self, tables)])


class BoundedSGD(QuickOptimizer):
    """The optimizer of the tables' weights. contexts: of each weight the places of its entries' contexts, and how
    many contexts there are."""

    def __init__(self, config: MemorySGD, tables: dict[Tensor, NgramTable]) -> None:
        self.config = config
        self.contexts = {weight: (table.context_of_entry, len(table.contexts)) for weight, table in tables.items()}
        super().__init__([{"params": list(tables), "lr": config.lr}], {})

    def set_step(self, step: int, factor: float) -> None:
        """Nothing depends on the step."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        config = self.config
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                context, count = self.contexts[p]
                state = self.state[p]
                if not state:
                    state["updates"] = p.new_zeros(count)
                state["updates"][context[p.grad != 0].unique()] += 1
                move = (p.grad * group["lr"]).clamp_(-config.largest_step, config.largest_step)
                p.sub_(move.mul_(state["updates"].clamp(min=1).pow_(-config.power)[context])).clamp_(min=0)
