"""Idea: many of them, a function each, the shortest that runs. Each is one seam; docs/add-an-idea.md has the table.

Expected: most lose at the top, which is tuned without them. They show what can be written, not what to hope for.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import hectogpt
from hectogpt import (
    MLP,
    AdamW,
    AfterStep,
    Attention,
    Block,
    CausalAttention,
    DataOrder,
    DecoderBlock,
    Init,
    InputPart,
    Loss,
    Muon,
    Optim,
    OptimizerGroup,
    Predictions,
    Run,
    Schedule,
    ScoreBias,
    Shuffled,
    Transformer,
    kinds,
    shift,
)

# --- the loss ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Smoothed(Loss):
    """Label smoothing (1512.00567): a share of each target's weight goes to all tokens alike. And a z-loss
    (2204.02311): log Z is pulled to 0."""

    share: float = 0.1
    z: float = 1e-4

    def total(self, predictions: Predictions) -> torch.Tensor:
        return (1 - self.share) * predictions.cross_entropy() + predictions.sum(self.rest)

    def rest(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_z = logits.logsumexp(-1)
        return self.share * (log_z - logits.mean(-1)) + self.z * log_z**2


@dataclass(frozen=True)
class Ahead(Loss):
    """Also the token after the next, by the same head, less and less."""

    weight: float = 0.5

    def total(self, predictions: Predictions) -> torch.Tensor:
        later = self.weight * (1 - predictions.progress)
        return predictions.cross_entropy() + later * predictions.cross_entropy(ahead=1)


@dataclass(frozen=True)
class NewWords(Loss):
    """Tokens that their row has had already weigh less."""

    again: float = 0.5

    def total(self, predictions: Predictions) -> torch.Tensor:
        seen = (predictions.targets[:, :, None] == predictions.ids[:, None, :]).tril().any(-1)
        return predictions.cross_entropy(torch.where(seen, self.again, 1.0))


TEACHERS: dict[str, Transformer] = {}


@dataclass(frozen=True)
class Distilled(Loss):
    """Half of each target's weight goes to what a trained model says; `teacher` is the folder of its run."""

    teacher: str = "runs/teacher"

    def total(self, predictions: Predictions) -> torch.Tensor:
        if self.teacher not in TEACHERS:
            TEACHERS[self.teacher] = hectogpt.load(self.teacher)[0]
        teacher = TEACHERS[self.teacher]
        with torch.no_grad():
            hidden = teacher.hidden(predictions.ids)

        def cross(logits: torch.Tensor, targets: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                said = teacher.lm_head(hidden, teacher.embeddings.weight).softmax(-1)
            return -(said * logits.log_softmax(-1)).sum(-1)

        return 0.5 * predictions.cross_entropy() + 0.5 * predictions.sum(cross, hidden)


def smoothed(run: Run) -> Run:
    return replace(run, loss=Smoothed())


def ahead(run: Run) -> Run:
    return replace(run, loss=Ahead())


def new_words(run: Run) -> Run:
    return replace(run, loss=NewWords())


def distilled(run: Run) -> Run:
    return replace(run, loss=Distilled())


# --- the MLP ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SwiGLU(MLP):
    """A gated MLP (2002.05202) of as many weights as GPT-2's."""

    width: float = 8 / 3

    def build(self, layer, config):
        return SwiGLULayer(config.d_model, round(self.width * config.d_model), config.biases)


class SwiGLULayer(nn.Module):
    def __init__(self, d, width, bias):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, 2 * width, bias), nn.Linear(width, d, bias)

    def forward(self, x):
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


def swiglu(run: Run) -> Run:
    return replace(run, model=replace(run.model, mlp=SwiGLU()))


# --- the block --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sandwich(Block):
    """A norm after attention and MLP as well (2105.13290), and a learned share of each (layer scale, 2103.17239)."""

    share: float = 0.5

    def build(self, layer, config):
        return SandwichBlock(layer, config, self.share)


class SandwichBlock(DecoderBlock):
    def __init__(self, layer, config, share):
        super().__init__(layer, config)
        self.norms = nn.ModuleList(config.norm.build(config.d_model) for _ in range(2))
        self.shares = nn.Parameter(torch.full((2, config.d_model), share))

    def forward(self, x, view, cache=None, ve=None):
        x = x + self.shares[0] * self.norms[0](self.attention(self.pre_layer_norm(x), view, cache, ve))
        return x + self.shares[1] * self.norms[1](self.mlp(self.post_layer_norm(x)))


@dataclass(frozen=True)
class Parallel(Block):
    """Attention and MLP read the same (GPT-J), and a gate decides on attention's part."""

    def build(self, layer, config):
        return ParallelBlock(layer, config)


class ParallelBlock(DecoderBlock):
    def __init__(self, layer, config):
        super().__init__(layer, config)
        self.gate = nn.Linear(config.d_model, config.d_model)

    def forward(self, x, view, cache=None, ve=None):
        h = self.pre_layer_norm(x)
        return x + self.gate(h).sigmoid() * self.attention(h, view, cache, ve) + self.mlp(self.post_layer_norm(x))


@dataclass(frozen=True)
class UNet(Block):
    """The second half of the layers adds what entered the first half's, the last layer the first's."""

    def build(self, layer, config):
        return UNetBlock(layer, config)


class UNetBlock(DecoderBlock):
    def __init__(self, layer, config):
        super().__init__(layer, config)
        self.partner = config.n_layers - 1 - layer
        self.skip = nn.Parameter(torch.zeros(config.d_model)) if self.partner < layer else None

    def forward(self, x, view, cache=None, ve=None):
        if self.skip is not None:
            x = x + self.skip * view.entered[self.partner]
        return super().forward(x, view, cache, ve)


def sandwich(run: Run) -> Run:
    return replace(run, model=replace(run.model, block=Sandwich()))


def parallel(run: Run) -> Run:
    return replace(run, model=replace(run.model, block=Parallel()))


def u_net(run: Run) -> Run:
    return replace(run, model=replace(run.model, block=UNet()))


# --- attention --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window(ScoreBias):
    """Layers but every second one see the last `tokens` only."""

    tokens: int = 128

    def build(self, n_heads, d_head, layer=0):
        return WindowLayer(self.tokens if layer % 2 == 0 else 10**9)


class WindowLayer(nn.Module):
    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def forward(self, query_positions, key_positions):
        far = query_positions - key_positions >= self.tokens
        return torch.zeros(far.shape, device=far.device).masked_fill(far, float("-inf"))


@dataclass(frozen=True)
class Sinks(Attention):
    """Each head has a learned score for looking at nothing (gpt-oss)."""

    def build(self, layer, config):
        return SinksAttention(layer, config)


class SinksAttention(CausalAttention):
    def __init__(self, layer, config):
        super().__init__(layer, config)
        self.sinks = nn.Parameter(torch.zeros(config.n_heads))

    def change(self, q, k, v, mask, view):
        mask = self.whole_mask(view, q.dtype)
        sinks = self.sinks[:, None, None].to(q.dtype).expand(len(q), -1, q.shape[2], 1)
        mask = torch.cat((sinks, mask.expand(len(q), self.n_heads, -1, -1)), dim=-1)
        return q, F.pad(k, (0, 0, 1, 0)), F.pad(v, (0, 0, 1, 0)), mask


@dataclass(frozen=True)
class Forgetting(Attention):
    """A bias of content: a gate of each token says how much later ones forget of what came before (2503.02130)."""

    def build(self, layer, config):
        return ForgettingAttention(layer, config)


class ForgettingAttention(CausalAttention):
    def __init__(self, layer, config):
        super().__init__(layer, config)
        self.gate, self.d_key = nn.Linear(config.d_model, config.n_heads), config.d_attention + 1

    def qkv(self, x, view, ve=None):
        q, k, v = super().qkv(x, view, ve)
        kept = F.logsigmoid(self.gate(x) + 4.0).transpose(1, 2)[..., None]
        return q, torch.cat((k, kept.to(k.dtype)), dim=-1), v  # the cache holds it with the keys

    def change(self, q, k, v, mask, view):
        forgotten = -k[..., -1].float().cumsum(-1)[:, :, None]  # what a row has in common does not count
        return q, k[..., :-1], v, (self.whole_mask(view) + forgotten).to(q.dtype)


@dataclass(frozen=True)
class Grouped(Attention):
    """Grouped queries (2305.13245): several heads share keys and values, and the cache is smaller by as much."""

    kv_heads: int = 1

    def build(self, layer, config):
        return GroupedAttention(layer, config, self.kv_heads)


class GroupedAttention(CausalAttention):
    def __init__(self, layer, config, kv_heads):
        super().__init__(layer, config)
        self.kv_heads, self.group = kv_heads, config.n_heads // kv_heads
        del self.W_qkv
        self.W_q = nn.Linear(config.d_model, config.d_model, bias=config.biases)
        self.W_kv = nn.Linear(config.d_model, 2 * kv_heads * config.d_attention, bias=config.biases)

    def qkv(self, x, view, ve=None):
        q = self.W_q(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        k, v = self.W_kv(x).unflatten(-1, (2 * self.kv_heads, -1)).transpose(1, 2).chunk(2, dim=1)
        if ve is not None:
            v = v + self.ve_scale * ve.unflatten(-1, (self.kv_heads, self.group, -1)).mean(-2).transpose(1, 2)
        for part, prepared in zip(self.qk_parts, view.prepared, strict=True):
            q, k = part(q, k, prepared)
        return q, k, v

    def change(self, q, k, v, mask, view):
        return q, *(t.repeat_interleave(self.group, dim=1) for t in (k, v)), mask


def window(run: Run) -> Run:
    return replace(run, model=replace(run.model, attention_parts=(*run.model.attention_parts, Window())))


def sinks(run: Run) -> Run:
    return replace(run, model=replace(run.model, attention=Sinks()))


def forgetting(run: Run) -> Run:
    return replace(run, model=replace(run.model, attention=Forgetting()))


def grouped(run: Run) -> Run:
    return replace(run, model=replace(run.model, attention=Grouped()))


# --- the input --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecentMean(InputPart):
    """A learned share of the mean of the last embeddings: the first layer sees a topic at once."""

    tokens: int = 8

    def build(self, d_model, vocab_size, norm):
        return RecentMeanLayer(d_model, self.tokens)


class RecentMeanLayer(nn.Module):
    def __init__(self, d_model, tokens):
        super().__init__()
        self.tokens, self.share = tokens, nn.Parameter(torch.full((d_model,), 0.1))

    def forward(self, x, ids, cache=None):
        """Earlier tokens come through `shift` alone, which asks the cache while a text is continued."""
        mean = sum(shift(x, back, (self, back), cache) for back in range(1, self.tokens + 1)) / self.tokens
        return x + self.share * mean


@dataclass(frozen=True)
class Masked(InputPart):
    """While it trains, some tokens are replaced by one learned vector; all are predicted."""

    share: float = 0.1

    def build(self, d_model, vocab_size, norm):
        return MaskedLayer(d_model, self.share)


class MaskedLayer(nn.Module):
    def __init__(self, d_model, share):
        super().__init__()
        self.share, self.vector = share, nn.Parameter(torch.zeros(d_model))

    def forward(self, x, ids, cache=None):
        masked = torch.rand(ids.shape, device=x.device) < (self.share if self.training else 0.0)
        return torch.where(masked[..., None], self.vector.to(x.dtype), x)


def recent_mean(run: Run) -> Run:
    return replace(run, model=replace(run.model, inputs=(*run.model.inputs, RecentMean())))


def masked(run: Run) -> Run:
    return replace(run, model=replace(run.model, inputs=(*run.model.inputs, Masked())))


# --- the training -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Averaged(AfterStep):
    """An exponential average of the weights (EMA), which is the model at the end; how far they are from it."""

    decay: float = 0.9

    def after_step(self, session):
        distance = 0.0
        for name, weight in session.model.named_parameters():
            average = session.kept.setdefault(name, weight.clone())
            average.lerp_(weight, 1 - self.decay)
            distance += float((weight - average).square().sum())
            if session.step == session.run.steps:
                weight.copy_(average)
        return {"distance": distance**0.5}


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
    """Lion (2302.06675) for the matrices of the blocks; `rest` takes embeddings, head, gains and biases."""

    rest: AdamW
    lr: float = 0.002
    betas: tuple[float, float] = (0.9, 0.99)

    def build(self, model):
        kind_of = kinds(model)  # the name of every parameter -> "matrix", "embedding", "head", ...
        matrices = [p for name, p in model.named_parameters() if kind_of[name] == "matrix"]
        others = {name for name in kind_of if kind_of[name] != "matrix"}
        return OptimizerGroup([LionOptimizer(matrices, self.lr, self.betas), *self.rest.optimizers(model, others)])


class SAMOptimizer(torch.optim.AdamW):
    def step(self, closure):  # type: ignore[override]
        """A closure without a default is asked for: it computes the batch's gradients again."""
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.detach().clone() for p in weights]
        norm = torch.stack([p.grad.norm() for p in weights]).norm()
        with torch.no_grad():
            for p in weights:
                p.add_(p.grad, alpha=0.05 / float(norm + 1e-12))
        closure()
        with torch.no_grad():
            for p, was in zip(weights, before, strict=True):
                p.copy_(was)
        super().step()


@dataclass(frozen=True)
class SAM(Optim):
    """Sharpness-aware minimisation (2010.01412): the gradient of the worst point near by."""

    lr: float = 0.003

    def build(self, model):
        return OptimizerGroup([SAMOptimizer(model.parameters(), lr=self.lr)])


@dataclass(frozen=True)
class TablesFirst(Schedule):
    """Lookup tables follow a straight line to zero, all else stays for the first half."""

    def factor(self, step, steps):
        return min(1.0, 2 * (1 - step / steps))

    def of_kind(self, kind, step, steps):
        return 1 - step / steps if kind in ("embedding", "table") else self.factor(step, steps)


@dataclass(frozen=True)
class Orthogonal(Init):
    """Square maps start as rotations."""

    def draw(self, name, shape, std, generator):
        drawn = super().draw(name, shape, std, generator)
        return std * shape[0] ** 0.5 * torch.linalg.qr(drawn)[0] if shape[0] == shape[1] else drawn


@dataclass(frozen=True)
class RareTwice(DataOrder):
    """The half of the rows with more distinct tokens is read twice, the other is left out."""

    repeats: ClassVar[bool] = True

    def order(self, sequences, seed, epoch):
        distinct = np.array([len(np.unique(row)) for row in sequences])
        half = np.argsort(-distinct, kind="stable")[: (len(sequences) + 1) // 2]
        return np.concatenate((half, half))[Shuffled().order(sequences, seed, epoch)]


@dataclass(frozen=True)
class Mixture(DataOrder):
    """Of a folder with two texts the one first by name, which has this part of all rows, gets `share` of those read."""

    part: float = 0.5
    share: float = 0.8
    repeats: ClassVar[bool] = True

    def order(self, sequences, seed, epoch):
        n, draw = len(sequences), np.random.default_rng([seed, epoch])
        end, where = round(self.part * n), draw.random(n)
        return np.where(draw.random(n) < self.share, where * end, end + where * (n - end)).astype(int)


@dataclass(frozen=True)
class ShortFirst(Shuffled):
    """Rows of a quarter of the length, four times as many, for the first half of the run (2108.06084)."""

    def cut(self, rows, step, steps):
        length = rows.shape[1] // 4
        return rows[:, : 4 * length].reshape(-1, length) if step < steps // 2 else rows


@dataclass(frozen=True)
class SmallFirst(Shuffled):
    """Half the rows of each batch for the first half of the run, the others are left out (1711.00489)."""

    def cut(self, rows, step, steps):
        return rows[: -(-len(rows) // 2)] if step < steps // 2 else rows


def averaged(run: Run) -> Run:
    return replace(run, after_step=(Averaged(),))


def lion(run: Run) -> Run:
    return replace(run, optim=Lion(rest=run.optim.rest if isinstance(run.optim, Muon) else AdamW()))


def sam(run: Run) -> Run:
    return replace(run, optim=SAM())


def by_kind(run: Run) -> Run:
    return replace(run, schedule=TablesFirst())


def orthogonal(run: Run) -> Run:
    i = run.init
    return replace(run, init=Orthogonal(i.embedding, i.position, i.linear, i.residual, i.head))


def rare_twice(run: Run) -> Run:
    return replace(run, data=replace(run.data, order=RareTwice()))


def mixture(run: Run) -> Run:
    return replace(run, data=replace(run.data, order=Mixture()))


def short_first(run: Run) -> Run:
    return replace(run, data=replace(run.data, order=ShortFirst()))


def small_first(run: Run) -> Run:
    return replace(run, data=replace(run.data, order=SmallFirst()))
