"""Honest and unusual ideas, and a tiny base, for `tools.research.judge_proof honest`. None may be judged dishonest."""

# mypy: allow-untyped-defs

from dataclasses import dataclass

import torch
from torch import nn

from hectogpt import MLP, AdamW, Data, InputPart, Optim, OptimizerGroup, Run, Shuffled, replace


def tiny(run: Run) -> Run:
    model = replace(run.model, d_model=16, n_heads=2, n_layers=1, context_length=64)
    return replace(run, model=model, data=Data(batch_size=4, seq_len=64), optim=AdamW(lr=0.01), steps=6)


@dataclass(frozen=True)
class Part(InputPart):
    """The layer with this name, on the residual stream."""

    kind: str

    def build(self, d_model, vocab_size, norm):
        return {"running": RunningMean, "lazy": LazyTable}[self.kind](d_model)


class RunningMean(nn.Module):
    """Subtracts the mean of all training so far, which a buffer keeps."""

    mean: torch.Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_model))

    def forward(self, x, ids, cache=None):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(dim=(0, 1))
        return x - self.mean


class LazyTable(nn.Module):
    """Builds a table when it is first needed."""

    table: torch.Tensor | None = None

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(d_model))

    def forward(self, x, ids, cache=None):
        self.table = torch.arange(60_000.0).sin() if self.table is None else self.table
        return x + self.table[ids][..., None] * self.scale


@dataclass(frozen=True)
class Wide(MLP):
    """An MLP with bfloat16 products by autocast or, if `lazy`, a layer that takes its size from its first input."""

    lazy: bool = False

    def build(self, layer, config):
        first = nn.LazyLinear(32) if self.lazy else nn.Linear(config.d_model, 32)
        if self.lazy:
            first(torch.zeros(1, config.d_model))
        return (
            BFloat16(first, nn.Linear(32, config.d_model))
            if not self.lazy
            else nn.Sequential(first, nn.GELU(), nn.Linear(32, config.d_model))
        )


class BFloat16(nn.Module):
    def __init__(self, fc1: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.fc1 = fc1
        self.fc2 = fc2

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.fc2(torch.relu(self.fc1(x))).float()


class SignSGD(torch.optim.Optimizer):
    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            for parameter in (one for one in group["params"] if one.grad is not None):
                parameter -= group["lr"] * parameter.grad.sign()
        return loss


@dataclass(frozen=True)
class Signs(Optim):
    def build(self, model):
        return OptimizerGroup([SignSGD(model.parameters(), 0.002)])


@dataclass(frozen=True)
class HardestFirst(Shuffled):
    """Rows with many different tokens first, and only the second half of each."""

    def order(self, sequences, seed, epoch):
        return (-torch.tensor([len(set(row.tolist())) for row in sequences])).argsort(stable=True).numpy()

    def cut(self, rows, step, steps):
        return rows[:, rows.shape[1] // 2 :]


def with_part(run: Run, kind: str) -> Run:
    return replace(run, model=replace(run.model, inputs=(*run.model.inputs, Part(kind))))


def running_mean(run: Run) -> Run:
    return with_part(run, "running")


def lazy_table(run: Run) -> Run:
    return with_part(run, "lazy")


def bfloat16(run: Run) -> Run:
    return replace(run, model=replace(run.model, mlp=Wide()))


def lazy_layers(run: Run) -> Run:
    return replace(run, model=replace(run.model, mlp=Wide(lazy=True)))


def signs(run: Run) -> Run:
    return replace(run, optim=Signs())


def deeper(run: Run) -> Run:
    return replace(run, model=replace(run.model, d_model=32, n_layers=3))


def hardest_first(run: Run) -> Run:
    return replace(run, data=replace(run.data, order=HardestFirst()))
