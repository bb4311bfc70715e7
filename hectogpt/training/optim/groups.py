"""Kinds of parameters, settings per kind, and the object that steps several optimizers.

The kinds are embedding, other lookup table, position, matrix, head, head bias and scalar; every
parameter has exactly one. Learning rates are pure functions of the step, so there is no scheduler
state.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hectogpt.model import Transformer
from hectogpt.serialization import Value

Kind = Literal["embedding", "table", "position", "matrix", "head", "head_bias", "scalar"]


def kinds(model: Transformer) -> dict[str, Kind]:
    """Return name -> kind for every parameter. Shared parameters appear once.

    The kind of a parameter depends on the module that owns it.
    """
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
class PerKind:
    """A number for each kind. If it is None, the kind uses the optimizer's common number."""

    embedding: float | None = None
    table: float | None = None
    position: float | None = None
    matrix: float | None = None
    head: float | None = None
    head_bias: float | None = None
    scalar: float | None = None

    def of(self, kind: Kind, default: float) -> float:
        """The kind's own number, or the default."""
        value: float | None = getattr(self, kind)
        return default if value is None else value


@dataclass(frozen=True)
class Optim(Value):
    """An optimizer and its settings."""

    @abstractmethod
    def build(self, model: Transformer) -> OptimizerGroup:
        """Build the object that steps over the model's parameters."""


class QuickOptimizer(torch.optim.Optimizer):
    """torch's Optimizer, without the import of torch's compiler that takes a second or more.

    torch wraps some methods so that its compiler leaves them alone, and the first call imports the
    compiler. This class calls the method inside the wrapper. A subclass defines its own `step`.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)


class OptimizerGroup:
    """Torch optimizers that are stepped together, with learning rates scaled by a factor.

    An optimizer may offer more than torch's interface:
        set_step(step, factor): called before each step, after the learning rates are set, for
            anything else that depends on the step, such as a rising momentum.
        step(closure): if `closure` has no default, the optimizer gets a function that computes the
            gradients again.

    Attributes:
        optimizers: the optimizers. Their groups have `initial_lr`, the learning rate at factor 1.
        by_kind: True once `split_kinds` has given each parameter group a `kind`.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        self.by_kind = False
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])

    def step(
        self,
        step: int,
        factor: float,
        again: Callable[[], Tensor] | None = None,
        of_kind: Callable[[Kind], float] | None = None,
    ) -> None:
        """Apply the gradients of 0-based `step`.

        Args:
            step: the step.
            factor: multiplies every learning rate.
            again: computes the gradients of the same batch again and returns the batch's loss, for
                an optimizer whose `step` needs a closure.
            of_kind: the factor for each kind, used instead of `factor` after `split_kinds`.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                own = of_kind(group["kind"]) if of_kind and self.by_kind else factor
                group["lr"] = group["initial_lr"] * own
            if hasattr(optimizer, "set_step"):
                optimizer.set_step(step, factor)
            if needs_closure(optimizer):
                assert again is not None
                optimizer.step(cast(Any, again))
            else:
                optimizer.step()

    def split_kinds(self, model: Transformer) -> None:
        """Split parameter groups by kind, and store the kind in each group as `kind`.

        After this, each kind's learning rate can follow its own schedule.
        """
        self.by_kind = True
        kind_of = kinds(model)
        found = {id(p): kind_of[name] for name, p in model.named_parameters()}
        for optimizer in self.optimizers:
            optimizer.param_groups[:] = [
                group | {"kind": kind, "params": those}
                for group in optimizer.param_groups
                for kind in dict.fromkeys(found[id(p)] for p in group["params"])
                if (those := [p for p in group["params"] if found[id(p)] == kind])
            ]

    @property
    def lr(self) -> float:
        """The largest current learning rate of the first optimizer, for display."""
        return max(cast(float, group["lr"]) for group in self.optimizers[0].param_groups)


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """True if the optimizer's `step` needs a closure: the parameter has no default."""
    found = inspect.signature(optimizer.step).parameters.get("closure")
    return found is not None and found.default is inspect.Parameter.empty
