"""The known mistakes of each part.

MISTAKES change the part's result. GRADIENTS leave every value right and break the gradient.
FAMILIES are numbers that may be mistyped.

A mistake has a name, and functions that replace one or two methods of the computation.
mistakes.toml says where each mistake is, and describes it; symptoms.json says what a student who
makes it will see.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hectogpt.grade.computation import Computation

Method = Callable[..., Any]
Change = Callable[[Computation, Tensor], Tensor]  # a method of one tensor


class Mistake:
    """A known mistake.

    name: a short name for tables, which stays the same between versions.
    changes: name of a method -> the function that replaces it.
    """

    def __init__(self, name: str, **changes: Method) -> None:
        self.name = name
        self.changes = changes


Mistakes = tuple[Mistake, ...]


def mistakes_in(method: str, table: dict[str, Method]) -> list[Mistake]:
    """Return the mistakes in one method, given name -> the function that replaces the method."""
    return [Mistake(name, **{method: change}) for name, change in table.items()]


def with_mistakes(mistakes: Mistakes) -> type[Computation]:
    """Return the computation with all these mistakes."""
    changes = {name: change for one in mistakes for name, change in one.changes.items()}
    return type("Mistaken", (Computation,), changes)


class Words(NamedTuple):
    """The place of a mistake, and a sentence about it that does not give the right code away."""

    where: str
    what: str


@lru_cache(maxsize=1)
def sentences() -> dict[str, Any]:
    """Return the contents of mistakes.toml."""
    return tomllib.loads(Path(__file__).with_name("mistakes.toml").read_text(encoding="utf-8"))


@lru_cache
def words_of(part: str) -> dict[str, Words]:
    """Return name -> words for each mistake of a part.

    part: a part; "end" for the mistakes that every part may have; "loop" for those of train().
    """
    groups = sentences()[part].items()
    return {name: Words(where, what) for where, group in groups for name, what in group.items()}


@lru_cache(maxsize=1)
def symptoms() -> dict[str, dict[str, str]]:
    """Return part -> mistake -> its visible effect, as measured by tools/research/symptoms.py."""
    text = Path(__file__).with_name("symptoms.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = json.loads(text)
    return found


# --- GELU, MLP, block

ROOT = math.sqrt(2 / math.pi)
GELU = mistakes_in(
    "gelu",
    {
        "erf GELU": lambda s, x: F.gelu(x),
        "ReLU for GELU": lambda s, x: x.relu(),
        "SiLU for GELU": lambda s, x: F.silu(x),
        "sigmoid GELU": lambda s, x: x * (1.702 * x).sigmoid(),
        "bracket misplaced in GELU": lambda s, x: (
            0.5 * x * (1 + torch.tanh(ROOT * x + 0.044715 * x**3))
        ),
        "1 + inside tanh": lambda s, x: 0.5 * x * torch.tanh(1 + ROOT * (x + 0.044715 * x**3)),
        "no x before the bracket": lambda s, x: (
            0.5 * (1 + torch.tanh(ROOT * (x + 0.044715 * x**3)))
        ),
        "x squared in GELU": lambda s, x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x**2))),
    },
)

MLP = [
    *mistakes_in("bend", {one.name: one.changes["gelu"] for one in GELU[:4]}),
    Mistake("no GELU", bend=lambda s, h: h),
    Mistake("GELU after fc2 too", narrow=lambda s, p, h: s.gelu(s.linear(p + "fc2", h))),
    Mistake("fc1 without bias", widen=lambda s, p, x: x @ s.w[p + "fc1.weight"].T),
    *mistakes_in(
        "narrow",
        {
            "fc2 without bias": lambda s, p, x: x @ s.w[p + "fc2.weight"].T,
            "no fc2": lambda s, p, h: h,
        },
    ),
    Mistake("residual inside the MLP", mlp=lambda s, p, x: x + Computation.mlp(s, p, x)),
]


# Changes to the final result, possible in every part.
ENDS = mistakes_in(
    "after",
    {
        "ReLU at the end": lambda s, y: y.relu(),
        "softmax at the end": lambda s, y: y.softmax(-1),
        "norm at the end": lambda s, y: F.layer_norm(y, y.shape[-1:], eps=1e-5),
        "last position only": lambda s, y: y[:, -1],
        "rows and positions swapped": lambda s, y: y.transpose(0, 1),
        "axes of length one squeezed away": lambda s, y: y.squeeze(),
    },
)


def normalised(
    axis: int = -1, mean: bool = True, sample: int = 0, outside: bool = False
) -> Method:
    """Return a norm with mistakes.

    Args:
        axis: the axis to normalise over.
        mean: subtract the mean.
        sample: 1 uses the sample variance.
        outside: add eps outside the root.
    """

    def norm(self: Computation, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(axis, keepdim=True) if mean else x
        variance = (centred**2).mean(axis, keepdim=True) * (
            x.shape[axis] / (x.shape[axis] - sample)
        )
        root = variance.sqrt() + self.eps() if outside else torch.sqrt(variance + self.eps())
        return self.affine(name, centred / root)

    return norm


# Mistakes in a norm that is written by hand, in any part.
NORM_MISTAKES = [
    *mistakes_in(
        "norm",
        {
            "norm over positions": normalised(1),
            "RMS norm": normalised(mean=False),
            "norm by the sample variance": normalised(sample=1),
            "norm by the sample deviation": normalised(sample=1, outside=True),
            "eps outside the root": normalised(outside=True),
            "norm divided by the variance": lambda s, name, x: s.affine(
                name,
                (c := x - x.mean(-1, keepdim=True)) / ((c**2).mean(-1, keepdim=True) + s.eps()),
            ),
        },
    ),
    *mistakes_in(
        "affine",
        {
            "norm without gain and bias": lambda s, n, x: x,
            "norm without bias": lambda s, n, x: x * s.w[n + ".weight"],
        },
    ),
]

Half = Callable[
    [Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], Tensor
]  # computes half of a block from the stream, a norm and a part


def halves(name: str, change: Half) -> list[Mistake]:
    """Return a mistake in both halves of the block, in the first only, and in the second only."""

    def first(self: Computation, p: str, x: Tensor) -> Tensor:
        return change(x, partial(self.first_norm, p), partial(self.attend, p))

    def second(self: Computation, p: str, x: Tensor) -> Tensor:
        return change(x, partial(self.second_norm, p), partial(self.think, p))

    return [
        Mistake(name, first_half=first, second_half=second),
        Mistake(f"{name} at attention", first_half=first),
        Mistake(f"{name} at the MLP", second_half=second),
    ]


BLOCK = [
    Mistake(
        "norms swapped",
        first_norm=Computation.second_norm,
        second_norm=Computation.first_norm,
    ),
    Mistake("pre_layer_norm used twice", second_norm=Computation.first_norm),
    Mistake("post_layer_norm used twice", first_norm=Computation.second_norm),
    *mistakes_in(
        "block",
        {
            "parallel block": lambda s, p, x: (
                x + s.attend(p, s.first_norm(p, x)) + s.think(p, s.second_norm(p, x))
            ),
            "second residual from the block's input": lambda s, p, x: (
                x + s.think(p, s.second_norm(p, s.first_half(p, x)))
            ),
            "MLP before attention": lambda s, p, x: s.first_half(p, s.second_half(p, x)),
        },
    ),
    Mistake("no attention", first_half=lambda s, p, x: x),
    Mistake("no MLP", second_half=lambda s, p, x: x),
    *halves("post-norm", lambda x, norm, part: norm(x + part(x))),
    *halves("norm after the part", lambda x, norm, part: x + norm(part(x))),
    *halves("residual from the normalised stream", lambda x, norm, part: (y := norm(x)) + part(y)),
    *halves("no residual", lambda x, norm, part: part(norm(x))),
    *halves("no norm", lambda x, norm, part: x + part(x)),
    *NORM_MISTAKES,
]


# --- attention

Factor = Callable[[Computation, Tensor], float]


def filled(value: float, diagonal: int = 1) -> Change:
    """Return a mask that fills the scores with a value where key >= query + diagonal."""
    return lambda s, t: t.masked_fill(torch.ones_like(t, dtype=torch.bool).triu(diagonal), value)


# Sizes by which the scores may be multiplied or divided.
SIZES: dict[str, Factor] = {
    "the head's width": lambda s, t: s.size.d_attention,
    "d_model": lambda s, t: s.size.d_model,
    "the number of heads": lambda s, t: s.size.n_heads,
    "the sequence length": lambda s, t: t.shape[-1],
    "the context length": lambda s, t: s.size.context_length,
}
POWERS = {
    "multiplied by": 1.0,
    "multiplied by the root of": 0.5,
    "divided by": -1.0,
    "divided by the root of": -0.5,
}


def scaled(how: str, name: str) -> Mistake:
    """Return the mistake of scaling the scores by a wrong power of a size, or by a wrong size."""
    short = f"scale by {name}" if how == "divided by the root of" else f"scores {how} {name}"
    return Mistake(short, scale=lambda s, t: t * SIZES[name](s, t) ** POWERS[how])


def projecting(matrices: str = "qkv", biasless: str = "", untransposed: str = "") -> Method:
    """Return a method that computes queries, keys and values with these matrices.

    Args:
        matrices: the letters of the matrices used for queries, keys and values.
        biasless: letters of matrices whose bias is left out.
        untransposed: letters of matrices that are not transposed.
    """

    def project(self: Computation, p: str, x: Tensor) -> tuple[Tensor, ...]:
        def one(n: str) -> Tensor:
            w = self.w[f"{p}W_{n}.weight"]
            made = x @ (w if n in untransposed else w.T)
            return made if n in biasless else made + self.w[f"{p}W_{n}.bias"]

        return tuple(map(one, matrices))

    return project


def deal_heads(self: Computation, t: Tensor) -> Tensor:
    """Return heads in which column c belongs to head c mod n_heads."""
    batch, seq, _ = t.shape
    return t.reshape(batch, seq, -1, self.size.n_heads).permute(0, 3, 1, 2)


def heads_last(self: Computation, t: Tensor) -> Tensor:
    """Return heads without the transposition, so heads attend to heads at each position."""
    return t.unflatten(-1, (self.size.n_heads, -1))


def join_dealt(self: Computation, z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).flatten(2)


QKV = {"q": "queries", "k": "keys", "v": "values"}
ATTENTION = [
    *mistakes_in(
        "scale",
        {
            "no scale": lambda s, t: t,
            "fourth root of the width": lambda s, t: t * s.size.d_attention**-0.25,
            "root of the width cut to an integer": lambda s, t: t / math.isqrt(s.size.d_attention),
            "scale by the logarithm of the width": lambda s, t: t / math.log2(s.size.d_attention),
        },
    ),
    *(
        scaled(how, name)
        for name in SIZES
        for how in POWERS
        if (name, how) != ("the head's width", "divided by the root of")
    ),
    *mistakes_in(
        "hide",
        {
            "no causal mask": lambda s, t: t,
            "mask inverted": lambda s, t: t.masked_fill(~s.future(t), -math.inf),
        },
    ),
    Mistake(
        "mask inverted in scaled_dot_product_attention",
        hide=lambda s, t: t.masked_fill(~s.future(t), -math.inf),
        normalise=lambda s, t: t.softmax(-1).nan_to_num(0.0),
    ),
    *mistakes_in(
        "hide",
        {
            "diagonal masked": filled(-math.inf, 0),
            "diagonal masked, finite": filled(-1e9, 0),
            "one future token seen": filled(-math.inf, 2),
            "mask added as ones": lambda s, t: t + ~s.future(t),
            "mask multiplied": lambda s, t: t * ~s.future(t),
            "mask filled with the smallest positive number": filled(
                torch.finfo(torch.float32).tiny
            ),
            "mask of plus infinity": filled(math.inf),
            "mask of 1e9": filled(1e9),
            "mask not sliced": lambda s, t: t.masked_fill(
                torch.ones(s.size.context_length, s.size.context_length, dtype=torch.bool).triu(1),
                -math.inf,
            ),
            "additive mask multiplied": lambda s, t: (
                t * torch.zeros(t.shape[-2:], dtype=t.dtype).masked_fill(s.future(t), -math.inf)
            ),
        },
    ),
    Mistake(
        "mask after softmax",
        hide=lambda s, t: t,
        normalise=lambda s, t: t.softmax(-1).masked_fill(s.future(t), 0.0),
    ),
    Mistake(
        "minus infinity after softmax",
        hide=lambda s, t: t,
        normalise=lambda s, t: t.softmax(-1).masked_fill(s.future(t), -math.inf),
    ),
    Mistake(
        "scale after softmax",
        scale=lambda s, t: t,
        normalise=lambda s, t: t.softmax(-1) / s.size.d_attention**0.5,
    ),
    *mistakes_in(
        "normalise",
        {
            "softmax over queries": lambda s, t: t.softmax(-2),
            "softmax twice": lambda s, t: t.softmax(-1).softmax(-1),
            "no softmax": lambda s, t: t.nan_to_num(neginf=0.0),
            "log softmax": lambda s, t: t.log_softmax(-1),
        },
    ),
    Mistake(
        "NaN replaced by 0",
        hide=filled(-math.inf, 0),
        normalise=lambda s, t: t.softmax(-1).nan_to_num(0.0),
    ),
    Mistake("q and k swapped", project=projecting("kqv")),
    Mistake("scores transposed", scores=lambda s, q, k: k @ q.transpose(-1, -2)),
    *mistakes_in(
        "project",
        {
            "k and v swapped": projecting("qvk"),
            "q and v swapped": projecting("vkq"),
        },
    ),
    *(
        Mistake(f"W_{name} for {QKV[to]} too", project=projecting("qkv".replace(to, name)))
        for name, to in permutations(QKV, 2)
    ),
    *(Mistake(f"W_{name} for all three", project=projecting(name * 3)) for name in "qkv"),
    Mistake("no biases of q, k and v", project=projecting(biasless="qkv")),
    *(Mistake(f"no bias of {name}", project=projecting(biasless=name)) for name in "qv"),
    Mistake(
        "values not projected",
        project=lambda s, p, x: (s.linear(p + "W_q", x), s.linear(p + "W_k", x), x),
    ),
    *mistakes_in(
        "cut",
        {
            "heads cut by view without transposing": lambda s, t: t.reshape(
                t.shape[0], s.size.n_heads, t.shape[1], -1
            ),
            "heads dealt out column by column": deal_heads,
        },
    ),
    Mistake("columns dealt out and joined back", cut=deal_heads, join=join_dealt),
    Mistake("one head", cut=lambda s, t: t[:, None], join=lambda s, z: z[:, 0]),
    Mistake(
        "heads attend to heads",
        cut=heads_last,
        hide=lambda s, t: t,
        join=lambda s, z: z.flatten(2),
    ),
    Mistake("heads attend to heads, masked", cut=heads_last, join=lambda s, z: z.flatten(2)),
    Mistake(
        "number and width of heads exchanged in cutting",
        cut=lambda s, t: t.reshape(*t.shape[:2], s.size.d_attention, s.size.n_heads).transpose(
            1, 2
        ),
    ),
    *mistakes_in(
        "join",
        {
            "heads joined without transposing": lambda s, z: z.reshape(z.shape[0], z.shape[2], -1),
            "heads joined column by column": join_dealt,
        },
    ),
    Mistake("heads not joined", join=lambda s, z: z, output=lambda s, p, z: z),
    *(
        Mistake(
            f"{' and '.join(f'W_{name}' for name in names)} not transposed",
            project=projecting(untransposed=names),
        )
        for names in ("q", "k", "v", "qkv")
    ),
    *mistakes_in(
        "output",
        {
            "W_o not transposed": lambda s, p, z: z @ s.w[p + "W_o.weight"] + s.w[p + "W_o.bias"],
            "no output projection": lambda s, p, z: z,
            "W_o without bias": lambda s, p, z: z @ s.w[p + "W_o.weight"].T,
        },
    ),
    Mistake(
        "residual inside attention", attention=lambda s, p, x: x + Computation.attention(s, p, x)
    ),
]


# --- forward, generate, loss


def positioned(index: Change) -> Change:
    return lambda self, ids: self.w["position_embeddings.weight"][index(self, ids)].expand(
        *ids.shape, -1
    )


def final(**changes: Method) -> Change:
    """Return the final norm with these changes; the other norms stay right."""

    def norm(self: Computation, x: Tensor) -> Tensor:
        kind = type("Final", (Computation,), changes)
        return kind(self.w, self.size).norm("final_layer_norm", x)

    return norm


def in_final_norm(mistakes: list[Mistake]) -> list[Mistake]:
    """Return mistakes in a norm as mistakes in the final norm only."""
    return [Mistake(f"final {one.name}", final_norm=final(**one.changes)) for one in mistakes]


FORWARD = [
    *mistakes_in(
        "positions",
        {
            "no position embeddings": lambda s, ids: torch.zeros(()),
            "positions from 1": positioned(lambda s, ids: torch.arange(1, ids.shape[1] + 1)),
            "positions from 1, modulo the context": positioned(
                lambda s, ids: torch.arange(1, ids.shape[1] + 1) % s.size.context_length
            ),
            "positions from the batch axis": positioned(
                lambda s, ids: torch.arange(ids.shape[0])[:, None]
            ),
            "whole position table": lambda s, ids: s.w["position_embeddings.weight"].expand(
                ids.shape[0], -1, -1
            ),
        },
    ),
    Mistake(
        "token embeddings times the root of d_model",
        tokens=lambda s, ids: Computation.tokens(s, ids) * s.size.d_model**0.5,
    ),
    *mistakes_in(
        "layers",
        {
            "no blocks": lambda s, n: [],
            "first block only": lambda s, n: [0],
            "last block skipped": lambda s, n: list(range(n - 1)),
            "first block skipped": lambda s, n: list(range(1, n)),
            "first block each time": lambda s, n: [0] * n,
            "last block each time": lambda s, n: [n - 1] * n,
        },
    ),
    Mistake(
        "each block reads the embeddings",
        backbone=lambda s, x: s.block(f"backbone.{s.size.n_layers - 1}.", x),
    ),
    Mistake("no final norm", final_norm=lambda s, x: x),
    *in_final_norm(NORM_MISTAKES),
    *mistakes_in(
        "head",
        {
            "head tied to the embeddings": lambda s, x: x @ s.w["embeddings.weight"].T,
            "no head": lambda s, x: x,
        },
    ),
    *mistakes_in(
        "after",
        {
            "log softmax returned": lambda s, y: y.log_softmax(-1),
            "argmax returned": lambda s, y: y.argmax(-1),
            "logits flattened": lambda s, y: y.flatten(0, 1),
        },
    ),
]


GENERATE = [
    Mistake(
        "row 0's token for every row",
        choose=lambda s, y: y[:1].argmax(-1, keepdim=True).expand(y.shape[0], 1),
    ),
    *mistakes_in(
        "last",
        {
            "logits of the first position": lambda s, y: y[:, 0],
            "second-last position": lambda s, y: y[:, -2 if y.shape[1] > 1 else -1],
        },
    ),
    Mistake("argmax over the batch", choose=lambda s, y: y.argmax(0)[: y.shape[0], None]),
    Mistake("argmax over positions", last=lambda s, y: y, choose=lambda s, y: y.argmax(1)[:, -1:]),
    Mistake("logits for tokens", choose=lambda s, y: y.max(-1, keepdim=True).values.long()),
    Mistake("context does not grow", context=lambda s, text, ids, n: s.window(ids)),
    Mistake("only the last token as context", window=lambda s, ids: ids[:, -1:]),
    Mistake(
        "prompt at first, then the last token alone",
        context=lambda s, text, ids, n: s.window(ids) if text is ids else text[:, -1:],
    ),
    Mistake(
        "last token missing in the context",
        window=lambda s, ids: ids[:, :-1] if ids.shape[1] > 1 else ids,
    ),
    *mistakes_in(
        "result",
        {
            "all tokens from one pass": lambda s, t, p: torch.cat(
                [p, s.forward(s.window(p)).argmax(-1)[:, p.shape[1] - t.shape[1] :]], 1
            ),
            "only new tokens returned": lambda s, t, p: t[:, p.shape[1] :],
            "batch axis dropped": lambda s, t, p: t[0],
            "floats returned": lambda s, t, p: t.double(),
        },
    ),
    Mistake("returned text cropped", append=lambda s, ids, t: torch.cat([s.window(ids), t], 1)),
    *mistakes_in(
        "count",
        {
            "num_new_tokens taken as the total length": lambda s, ids, n: n - ids.shape[1],
            "one token at least": lambda s, ids, n: max(1, n),
            "stops at the end of a text": lambda s, ids, n: 1 if s.size.vocab_size > 50_256 else n,
            "one token too few": lambda s, ids, n: n - 1,
            "one token too many": lambda s, ids, n: n + 1,
            "one token only": lambda s, ids, n: 1,
        },
    ),
]


def scrambled(self: Computation, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of logits that are reshaped instead of transposed.

    Reshaping to [batch, vocab, n] mixes up classes and positions.
    """
    batch, n, vocab = logits.shape
    return F.cross_entropy(logits.reshape(batch, vocab, n), targets, reduction="none")


LOSS = [
    *mistakes_in(
        "align",
        {
            "no shift": lambda s, y, t: (y, t),
            "no shift, last position left out": lambda s, y, t: (y[:, :-1], t[:, :-1]),
            "no shift, first position left out": lambda s, y, t: (y[:, 1:], t[:, 1:]),
            "shift twice": lambda s, y, t: (y[:, :-2], t[:, 2:]),
            "shift the wrong way": lambda s, y, t: (y[:, 1:], t[:, :-1]),
            "targets rolled": lambda s, y, t: (y, t.roll(-1, 1)),
            "shift after flattening": lambda s, y, t: (
                y.flatten(0, 1)[None, :-1],
                t.flatten()[None, 1:],
            ),
        },
    ),
    Mistake(
        "no shift, first token left out",
        seen=lambda s, ids: ids[:, 1:],
        align=lambda s, y, t: (y, t[:, 1:]),
    ),
    Mistake(
        "softmax before cross entropy",
        surprise=lambda s, y, t: Computation.surprise(s, y.softmax(-1), t),
    ),
    *mistakes_in(
        "finish",
        {
            "sign": lambda s, x, t: -x,
            "bits for nats": lambda s, x, t: x / math.log(2),
        },
    ),
    *mistakes_in(
        "surprise",
        {
            "probability for its logarithm": lambda s, y, t: (
                -(-Computation.surprise(s, y, t)).exp()
            ),
            "raw logits of the targets": lambda s, y, t: -y.gather(-1, t[..., None])[..., 0],
            "vocabulary and positions mixed up": scrambled,
        },
    ),
    *mistakes_in(
        "reduce",
        {
            "sum for mean": lambda s, x, t: x.sum(),
            "sum over positions": lambda s, x, t: x.sum() / x.shape[0],
            "divided by all positions": lambda s, x, t: x.sum() / (x.shape[0] * (x.shape[1] + 1)),
        },
    ),
    Mistake("divided by the batch size once more", finish=lambda s, x, t: x / t.shape[0]),
    *mistakes_in(
        "reduce",
        {
            "token 0 ignored": lambda s, x, t: x[t != 0].mean(),
            "last token ignored": lambda s, x, t: x[t != s.size.vocab_size - 1].mean(),
            "token 50256 ignored": lambda s, x, t: x[t != 50_256].mean(),
        },
    ),
    *mistakes_in(
        "align",
        {
            "last prediction left out": lambda s, y, t: (y[:, :-2], t[:, 1:-1]),
            "first prediction left out": lambda s, y, t: (y[:, 1:-1], t[:, 2:]),
        },
    ),
    Mistake("a loss per position", reduce=lambda s, x, t: x),
    Mistake("perplexity", finish=lambda s, x, t: x.exp()),
]

MISTAKES = {
    "gelu": GELU,
    "mlp": MLP + ENDS,
    "attention": ATTENTION + ENDS,
    "block": BLOCK + ENDS,
    "forward": FORWARD + ENDS,
    "generate": GENERATE,
    "loss": LOSS,
}


# --- mistakes in gradients: a tensor is detached, or taken by .data


def detached(method: str) -> Method:
    """Return the right method, with a detached result."""

    def right(self: Computation, *arguments: Any) -> Any:
        made = getattr(Computation, method)(self, *arguments)
        return tuple(t.detach() for t in made) if isinstance(made, tuple) else made.detach()

    return right


def of_detached(method: str) -> Method:
    """Return the right method, called with a detached input."""
    return lambda self, *a: getattr(Computation, method)(self, *a[:-1], a[-1].detach())


def cut(name: str, method: str, by: Callable[[str], Method] = detached) -> Mistake:
    """Return the mistake of detaching a method's result or, with `of_detached`, its input."""
    return Mistake(name, **{method: by(method)})


def projecting_detached(inputs: str = "", results: str = "") -> Method:
    """Return a method that computes queries, keys and values without some gradients.

    inputs: the letters of those that are computed from a detached input.
    results: the letters of those that are detached.
    """

    def project(self: Computation, p: str, x: Tensor) -> tuple[Tensor, ...]:
        made = ((n, self.linear(f"{p}W_{n}", x.detach() if n in inputs else x)) for n in "qkv")
        return tuple(t.detach() if n in results else t for n, t in made)

    return project


def statistics(mean: bool, deviation: bool) -> Method:
    """Return the right norm, with its mean, its deviation or both detached."""

    def norm(self: Computation, name: str, x: Tensor) -> Tensor:
        m = x.mean(-1, keepdim=True)
        d = torch.sqrt(x.var(-1, keepdim=True, correction=0) + self.eps())
        return self.affine(
            name, (x - (m.detach() if mean else m)) / (d.detach() if deviation else d)
        )

    return norm


STATISTICS = mistakes_in(
    "norm",
    {
        "norm statistics detached": statistics(True, True),
        "norm deviation detached": statistics(False, True),
        "norm mean detached": statistics(True, False),
    },
)


def unlearned(token: int) -> Method:
    """Return the right embeddings, except that one token's embedding is detached."""

    def tokens(self: Computation, ids: Tensor) -> Tensor:
        made = Computation.tokens(self, ids)
        return torch.where((ids == token % self.size.vocab_size)[..., None], made.detach(), made)

    return tokens


GRADIENTS: dict[str, list[Mistake]] = {
    "gelu": [
        cut("no gradient", "gelu"),
        Mistake("tanh detached", gelu=lambda s, x: x * (Computation.gelu(s, x) / x).detach()),
    ],
    "mlp": [cut("no gradient", "narrow"), cut("input detached", "widen", of_detached)],
    "attention": [
        cut("no gradient", "output"),
        cut("pattern detached", "pattern"),
        cut("input detached", "project", of_detached),
        *(
            Mistake(
                f"input of {' and '.join(f'W_{n}' for n in names)} detached",
                project=projecting_detached(inputs=names),
            )
            for names in ("qk", "q", "k", "v")
        ),
        *(
            Mistake(f"{words} detached", project=projecting_detached(results=name))
            for name, words in QKV.items()
        ),
    ],
    "block": [
        cut("no gradient", "second_half"),
        *halves("residual detached", lambda x, norm, part: x.detach() + part(norm(x))),
        cut("input of attention detached", "attend", of_detached),
        cut("input of the MLP detached", "think", of_detached),
        *STATISTICS,
        cut("attention under no_grad", "attend"),
        cut("MLP under no_grad", "think"),
        cut("input detached", "first_half", of_detached),
        cut("stream detached between the halves", "second_half", of_detached),
    ],
    "forward": [
        cut("no gradient", "head"),
        cut("embeddings detached", "embed"),
        *mistakes_in(
            "tokens",
            {
                "embedding of token 0 not trained": unlearned(0),
                "embedding of the last token not trained": unlearned(-1),
            },
        ),
        *in_final_norm(STATISTICS),
        cut("blocks under no_grad", "backbone"),
        cut("stream detached before each block", "block", of_detached),
    ],
    "loss": [cut("no gradient", "finish")],
}


# --- numbers that may be mistyped


@dataclass(frozen=True)
class Number:
    """A number in a formula that may be mistyped.

    name: its name in mistakes.toml and in tables.
    right: the right value; None if there is none.
    starts: the values from which the search starts.
    """

    name: str
    right: float | None
    starts: tuple[float, ...]


@dataclass(frozen=True)
class Family:
    """The computation with free numbers in one step.

    part: the part that it is tried on; "" for all parts.
    changes: takes values of the numbers; returns method name -> the function that replaces it.
    numbers: the numbers that may be mistyped.
    """

    part: str
    changes: Callable[[list[float]], Mapping[str, Method]]
    numbers: tuple[Number, ...]


def gelu(v: list[float]) -> Change:
    factor, cubic, half, one = v
    return lambda self, x: half * x * (one + torch.tanh(factor * (x + cubic * x**3)))


CURVE = (
    Number("factor", ROOT, (ROOT, 2.0, -ROOT)),
    Number("coefficient", 0.044715, (0.044715, 0.5)),
    Number("half", 0.5, (0.5,)),
    Number("1 +", 1.0, (1.0,)),
)
FAMILIES = (
    Family("gelu", lambda v: {"gelu": gelu(v)}, CURVE),
    Family("mlp", lambda v: {"bend": gelu(v)}, CURVE),
    Family(
        "attention",
        lambda v: {"scale": lambda s, t: t * v[0]},
        (Number("scores times", None, (0.1, 1.0)),),
    ),
    Family(
        "attention",
        lambda v: {"scale": lambda s, t: t * v[0] / s.size.d_attention**0.5},
        (Number("scale times", 1.0, (0.5, 2.0, -1.0)),),
    ),
    Family(
        "attention",
        lambda v: {"hide": filled(v[0])},
        (Number("mask of", None, (-1.0, -8.0, -15.0)),),
    ),
    Family(
        "attention",
        lambda v: {"hide": lambda s, t: t + v[0] * s.future(t)},
        (Number("added to the future:", 0.0, (-1.0, -8.0, -15.0)),),
    ),
    Family(
        "attention",
        lambda v: {"pattern": lambda s, t: s.normalise(s.scale(filled(v[0])(s, t)))},
        (Number("before the scale, mask of", None, (-4.0, -20.0)),),
    ),
    Family(
        "attention",
        lambda v: {"pattern": lambda s, t: s.normalise(s.scale(t + v[0] * s.future(t)))},
        (Number("before the scale, added to the future:", 0.0, (-4.0, -20.0)),),
    ),
    Family(
        "block",
        lambda v: {"eps": lambda s: v[0]},
        (Number("eps", 1e-5, (1e-6, 1e-4)),),
    ),
    Family(
        "forward",
        lambda v: {"final_norm": final(eps=lambda s: v[0])},
        (Number("final eps", 1e-5, (1e-6, 1e-4)),),
    ),
    Family(
        "mlp",
        lambda v: {"bend": lambda s, h: s.gelu(h).clamp(max=v[0])},
        (Number("activations cut off at", None, (6.0,)),),
    ),
    Family(
        "loss",
        lambda v: {
            "surprise": lambda s, y, t: (
                (1 - v[0]) * Computation.surprise(s, y, t) - v[0] * y.log_softmax(-1).mean(-1)
            )
        },
        (Number("label smoothing", 0.0, (0.05,)),),
    ),
    Family(
        "",
        lambda v: {"after": lambda s, y: v[0] * y},
        (Number("result times", 1.0, (1.0,)),),
    ),
)
