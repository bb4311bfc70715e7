"""Idea: Lion (2302.06675) for the hidden matrices. Every weight moves by the learning rate, along its momentum's sign.

Expected: worse than the top, whose optimizer treats a matrix as a whole, and better than AdamW for less memory.
"""

from dataclasses import dataclass

import torch

from hectogpt import AdamW, Muon, Optim, OptimizerGroup, Run, Transformer, kinds, replace


class LionOptimizer(torch.optim.Optimizer):
    def __init__(self, parameters, lr, betas):
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:  # group["lr"] is the learning rate times the schedule's factor
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.sub_(momentum.lerp(p.grad, 1 - group["betas"][0]).sign_(), alpha=group["lr"])
                momentum.lerp_(p.grad, 1 - group["betas"][1])


@dataclass(frozen=True)
class Lion(Optim):
    """Lion for the matrices of the blocks; `rest` takes embeddings, head, gains and biases."""

    rest: AdamW
    lr: float = 0.002
    betas: tuple[float, float] = (0.9, 0.99)

    def build(self, model: Transformer) -> OptimizerGroup:
        kind_of = kinds(model)  # the name of every parameter -> "matrix", "embedding", "head", ...
        matrices = [p for name, p in model.named_parameters() if kind_of[name] == "matrix"]
        others = {name for name in kind_of if kind_of[name] != "matrix"}
        return OptimizerGroup([LionOptimizer(matrices, self.lr, self.betas), *self.rest.optimizers(model, others)])


def idea(run: Run) -> Run:
    """Replaces Muon, or SOAP before Muon; the AdamW that it leaves the other parameters to stays."""
    return replace(run, optim=Lion(rest=run.optim.rest if isinstance(run.optim, Muon) else AdamW()))
