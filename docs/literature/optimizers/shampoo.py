import math
from dataclasses import dataclass, replace

import torch

from hectogpt import AdamW, Muon, Optim, OptimizerGroup, Run, kinds


def _rest_of(run: Run) -> AdamW:
    """The AdamW of everything that is no matrix."""
    return run.optim.rest if isinstance(run.optim, Muon) else AdamW()


@dataclass(frozen=True)
class ForMatrices(Optim):
    """An optimizer for the matrices of the blocks; `rest` takes embeddings, tables, head, gains and biases."""

    rest: AdamW
    lr: float = 0.003

    def build(self, model):
        kind_of = kinds(model)  # the name of every parameter -> "matrix", "embedding", "head", ...
        matrices = [p for name, p in model.named_parameters() if kind_of[name] == "matrix"]
        others = {name for name in kind_of if kind_of[name] != "matrix"}
        return OptimizerGroup([self.optimizer(matrices), *self.rest.optimizers(model, others)])


class OwnOptimizer(torch.optim.Optimizer):
    """Calls `update(p, gradient, state)` for each parameter and subtracts lr times what it returns."""

    def __init__(self, parameters, config):
        super().__init__(parameters, {"lr": config.lr})
        self.config = config

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:  # group["lr"] is the learning rate times the schedule's factor
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                p.sub_(self.update(p, p.grad, state), alpha=group["lr"])


@dataclass(frozen=True)
class Shampoo(ForMatrices):
    """The momentum between inverse fourth roots of the covariances of rows and columns, as large as a Muon step."""

    lr: float = 0.05
    beta: float = 0.9

    def optimizer(self, matrices):
        return ShampooOptimizer(matrices, self)


class ShampooOptimizer(OwnOptimizer):
    def update(self, p, gradient, state):
        momentum = state.setdefault("momentum", torch.zeros_like(p)).lerp_(gradient, 0.1)
        update = momentum
        for side, product in (("left", gradient @ gradient.mT), ("right", gradient.mT @ gradient)):
            mean = state.setdefault(side, torch.zeros_like(product)).lerp_(product, 1 - self.config.beta)
            values, vectors = torch.linalg.eigh(mean + 1e-6 * mean.diagonal().max() * torch.eye(len(mean)))
            root = vectors * values.clamp(min=1e-20) ** -0.25 @ vectors.mT
            update = root @ update if side == "left" else update @ root
        return update / (update.norm() + 1e-12) * math.sqrt(min(p.shape) * max(1.0, p.shape[0] / p.shape[1]))


def shampoo(run: Run) -> Run:
    """Shampoo for the matrices, each step scaled to the size of Muon's.

    Source: Gupta et al. 2018, 1802.09568; scaled by another optimizer's size, Shi et al. 2023, 2309.06497.
    Claim: better than AdamW; the winner of AlgoPerf's first round. SOAP is better again (2409.11321).
    Expected: worse than SOAP before Muon, 0.01.
    """
    return replace(run, optim=Shampoo(_rest_of(run)))
