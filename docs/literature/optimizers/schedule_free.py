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
class ScheduleFree(ForMatrices):
    """AdamW whose gradients are taken between its iterate z and the mean x of all z. At the end the weights are x."""

    lr: float = 0.02
    beta: float = 0.9
    steps: int = 100

    def optimizer(self, matrices):
        return ScheduleFreeOptimizer(matrices, self)


class ScheduleFreeOptimizer(OwnOptimizer):
    @torch.no_grad()
    def step(self, closure=None):
        beta = self.config.beta
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                done = state["step"] = state.get("step", 0) + 1
                z = state.setdefault("z", p.clone())
                x = state.setdefault("x", p.clone())
                square = state.setdefault("square", torch.zeros_like(p)).lerp_(p.grad.square(), 0.05)
                z.sub_(p.grad / ((square / (1 - 0.95**done)).sqrt() + 1e-8), alpha=self.config.lr * min(1, done / 5))
                x.lerp_(z, 1 / done)
                p.copy_(x if done == self.config.steps else z.lerp(x, beta))


def schedule_free(run: Run) -> Run:
    """AdamW for the matrices at a constant learning rate, with averaging in place of a decay; a warm-up of five steps.

    Source: Defazio et al. 2024, 2405.15682.
    Claim: better than AdamW with a cosine; the winner of AlgoPerf's self-tuning track.
    Expected: worse than SOAP and Muon, 0.03.
    Sweep: optim.lr of 0.002, 0.005, 0.01, 0.02.
    """
    return replace(run, optim=ScheduleFree(_rest_of(run), steps=run.steps))
