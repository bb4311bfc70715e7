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
class Lion(ForMatrices):
    """The sign of a mean of momentum and gradient."""

    lr: float = 0.004
    betas: tuple[float, float] = (0.9, 0.99)

    def optimizer(self, matrices):
        return LionOptimizer(matrices, self)


class LionOptimizer(OwnOptimizer):
    def update(self, p, gradient, state):
        momentum = state.setdefault("momentum", torch.zeros_like(p))
        update = momentum.lerp(gradient, 1 - self.config.betas[0]).sign_()
        momentum.lerp_(gradient, 1 - self.config.betas[1])
        return update


def lion(run: Run) -> Run:
    """Lion for the matrices: steps of equal size, by the sign of the momentum.

    Source: Chen et al. 2023, 2302.06675.
    Claim: better than AdamW; a tie for small language models. Nothing against Muon.
    Expected: worse, 0.03.
    Sweep: optim.lr of 0.001, 0.002, 0.004, 0.008.
    """
    return replace(run, optim=Lion(_rest_of(run)))
