"""Known mistakes in causal self-attention."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from hectogpt.grade.computation import Computation
from hectogpt.grade.mistake import of
from hectogpt.grade.mistakes_layers import ends
from hectogpt.grade.mistakes_scores import MASK, MASKS, SCALES, band, filled, future, scaled


def projecting(q: str = "W_q", k: str = "W_k", v: str = "W_v") -> Callable[..., tuple[Tensor, ...]]:
    """Queries, keys and values from these matrices."""
    return lambda self, p, x: tuple(self.linear(p + name, x) for name in (q, k, v))


def without_bias(*names: str) -> Callable[..., tuple[Tensor, ...]]:
    def project(self: Computation, p: str, x: Tensor) -> tuple[Tensor, ...]:
        made = (
            x @ self.w[f"{p}{n}.weight"].T + (0 if n in names else self.w[f"{p}{n}.bias"])
            for n in ("W_q", "W_k", "W_v")
        )
        return tuple(made)

    return project


def view_heads(self: Computation, t: Tensor) -> Tensor:
    batch, seq, d = t.shape
    return t.reshape(batch, self.size.n_heads, seq, d // self.size.n_heads)


def deal_heads(self: Computation, t: Tensor) -> Tensor:
    """Column c belongs to head c mod n_heads."""
    batch, seq, _ = t.shape
    return t.reshape(batch, seq, -1, self.size.n_heads).permute(0, 3, 1, 2)


def one_head(self: Computation, t: Tensor) -> Tensor:
    return t[:, None]


def across_heads(self: Computation, p: str, x: Tensor) -> Tensor:
    """Without the transposition: at each position heads attend to heads."""
    q, k, v = (self.cut(t).transpose(1, 2) for t in self.project(p, x))
    z = self.normalise(self.scale(self.scores(q, k))) @ v
    return self.output(p, z.flatten(2))


def across_heads_masked(self: Computation, p: str, x: Tensor) -> Tensor:
    q, k, v = (self.cut(t).transpose(1, 2) for t in self.project(p, x))
    return self.output(p, (self.pattern(self.scores(q, k)) @ v).flatten(2))


def first_head_everywhere(self: Computation, t: Tensor) -> Tensor:
    h = self.size.n_heads
    return t[..., : t.shape[-1] // h][:, None].expand(-1, h, -1, -1)


def exchanged(self: Computation, t: Tensor) -> Tensor:
    batch, seq, _ = t.shape
    return t.reshape(batch, seq, self.size.d_attention, self.size.n_heads).transpose(1, 2)


def after_softmax(value: float) -> Callable[[Computation, Tensor], Tensor]:
    return lambda self, scores: scores.softmax(-1).masked_fill(future(self, scores), value)


def untransposed(*names: str) -> Callable[..., tuple[Tensor, ...]]:
    """These projections multiply by the stored matrix, not by its transpose."""

    def project(self: Computation, p: str, x: Tensor) -> tuple[Tensor, ...]:
        matrices = ((n, self.w[f"{p}{n}.weight"]) for n in ("W_q", "W_k", "W_v"))
        return tuple(x @ (w if n in names else w.T) + self.w[f"{p}{n}.bias"] for n, w in matrices)

    return project


def join_dealt(self: Computation, z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).flatten(2)


def join_untransposed(self: Computation, z: Tensor) -> Tensor:
    batch, _, seq, _ = z.shape
    return z.reshape(batch, seq, -1)


def with_residual(self: Computation, p: str, x: Tensor) -> Tensor:
    q, k, v = (self.cut(t) for t in self.project(p, x))
    return x + self.output(p, self.join(self.mix(self.pattern(self.scores(q, k)), v)))


def nan_to_zero(self: Computation, scores: Tensor) -> Tensor:
    return scores.softmax(-1).nan_to_num(0.0)


attention = of("attention")
HEADS = "how heads are cut and joined"
ATTENTION = [
    *(attention(n, "the scale of the scores", what, scale=scaled(f)) for n, what, f in SCALES),
    *(attention(n, MASK, what, hide=f) for n, what, f in MASKS),
    attention("mask after softmax", "the order of mask and softmax", "The future is set to 0 after the softmax: the weights of a query no longer sum to 1.", hide=lambda s, t: t, normalise=after_softmax(0.0)),
    attention("minus infinity after softmax", "the order of mask and softmax", "The mask is applied to the probabilities, after the softmax.", hide=lambda s, t: t, normalise=after_softmax(-math.inf)),
    attention("scale after softmax", "the scale of the scores", "The probabilities are divided by the root of the head's width; the scores have to be.", scale=lambda s, t: t, normalise=lambda s, t: t.softmax(-1) / s.size.d_attention**0.5),
    attention("softmax over queries", "the axis of the softmax", "The softmax runs over the queries, not over the keys.", normalise=lambda s, t: t.softmax(-2)),
    attention("softmax over heads", "the axis of the softmax", "The softmax runs over the heads, not over the keys.", normalise=lambda s, t: t.softmax(1)),
    attention("softmax over the batch", "the axis of the softmax", "The softmax runs over the batch, not over the keys.", normalise=lambda s, t: t.softmax(0)),
    attention("softmax twice", "the softmax", "The softmax is applied twice.", normalise=lambda s, t: t.softmax(-1).softmax(-1)),
    attention("no softmax", "the softmax", "There is no softmax: raw scores weigh the values.", normalise=lambda s, t: t.nan_to_num(neginf=0.0)),
    attention("log softmax", "the softmax", "The logarithm of the softmax weighs the values.", normalise=lambda s, t: t.log_softmax(-1)),
    attention("sigmoid for softmax", "the softmax", "A sigmoid stands where the softmax belongs.", normalise=lambda s, t: t.sigmoid()),
    attention("NaN replaced by 0", "the softmax", "Rows of NaN are patched over with zeros: some query sees no key at all.", hide=filled(band(-1), -math.inf), normalise=nan_to_zero),
    attention("q and k swapped", "queries and keys", "Queries and keys have changed places.", project=projecting("W_k", "W_q")),
    attention("scores transposed", "the scores", "The scores are transposed: rows are keys, not queries.", scores=lambda s, q, k: k @ q.transpose(-1, -2)),
    attention("k and v swapped", "keys and values", "Keys and values have changed places.", project=projecting(k="W_v", v="W_k")),
    attention("q and v swapped", "queries and values", "Queries and values have changed places.", project=projecting(q="W_v", v="W_q")),
    attention("q, k, v rotated", "queries, keys and values", "The three projections have changed places in a circle.", project=projecting("W_k", "W_v", "W_q")),
    attention("q, k, v rotated the other way", "queries, keys and values", "The three projections have changed places in a circle.", project=projecting("W_v", "W_q", "W_k")),
    attention("W_q for keys too", "the keys", "Keys are made with the matrix of the queries.", project=projecting(k="W_q")),
    attention("W_k for queries too", "the queries", "Queries are made with the matrix of the keys.", project=projecting(q="W_k")),
    attention("W_k for values too", "the values", "Values are made with the matrix of the keys.", project=projecting(v="W_k")),
    attention("W_q for values too", "the values", "Values are made with the matrix of the queries.", project=projecting(v="W_q")),
    attention("W_v for queries too", "the queries", "Queries are made with the matrix of the values.", project=projecting(q="W_v")),
    attention("W_v for keys too", "the keys", "Keys are made with the matrix of the values.", project=projecting(k="W_v")),
    attention("W_q for all three", "queries, keys and values", "One matrix, W_q, makes queries, keys and values.", project=projecting("W_q", "W_q", "W_q")),
    attention("W_k for all three", "queries, keys and values", "One matrix, W_k, makes queries, keys and values.", project=projecting("W_k", "W_k", "W_k")),
    attention("W_v for all three", "queries, keys and values", "One matrix, W_v, makes queries, keys and values.", project=projecting("W_v", "W_v", "W_v")),
    attention("no biases of q, k and v", "queries, keys and values", "The biases of the three projections are not added.", project=without_bias("W_q", "W_k", "W_v")),
    attention("no bias of q", "the queries", "The bias of the queries is not added.", project=without_bias("W_q")),
    attention("no bias of v", "the values", "The bias of the values is not added.", project=without_bias("W_v")),
    attention("values not projected", "the values", "The values are the input itself, without W_v.", project=lambda s, p, x: (s.linear(p + "W_q", x), s.linear(p + "W_k", x), x)),
    attention("heads cut by view without transposing", HEADS, "Heads are cut by a reshape straight to (batch, head, seq, width): positions and heads are mixed up.", cut=view_heads),
    attention("heads dealt out column by column", HEADS, "Head h takes every n_heads-th column; it has to take a run of neighbouring ones.", cut=deal_heads),
    attention("columns dealt out and joined back", HEADS, "The two axes of the heads are mislabelled, in cutting and in joining: head h takes every n_heads-th column.", cut=deal_heads, join=join_dealt),
    attention("one head", HEADS, "The input is not cut into heads: there is one head of the full width.", cut=one_head, join=lambda s, z: z[:, 0]),
    attention("heads attend to heads", HEADS, "Heads attend to heads at each position: an axis was not transposed before the product.", attention=across_heads),
    attention("heads attend to heads, masked", HEADS, "Heads attend to heads at each position: an axis was not transposed before the product.", attention=across_heads_masked),
    attention("number and width of heads exchanged", HEADS, "The number of heads and their width have changed places.", cut=exchanged, scale=lambda s, t: t / s.size.n_heads**0.5),
    attention("number and width of heads exchanged in cutting", HEADS, "The number of heads and their width have changed places.", cut=exchanged),
    attention("first head everywhere", HEADS, "All heads compute what the first one computes.", cut=first_head_everywhere),
    attention("heads joined without transposing", HEADS, "Heads are joined by a reshape without transposing first: positions and heads are mixed up.", join=join_untransposed),
    attention("heads joined column by column", HEADS, "The joined heads are interleaved; each has to stay a run of neighbouring columns.", join=join_dealt),
    attention("heads joined in reverse", HEADS, "The heads are joined in reverse order.", join=lambda s, z: z.flip(1).transpose(1, 2).flatten(2)),
    attention("heads averaged", HEADS, "The heads are averaged instead of put side by side.", join=lambda s, z: z.mean(1).repeat(1, 1, s.size.n_heads)),
    attention("heads summed", HEADS, "The heads are summed instead of put side by side.", join=lambda s, z: z.sum(1).repeat(1, 1, s.size.n_heads)),
    attention("heads not joined", HEADS, "The heads are not joined: the result has four axes.", join=lambda s, z: z, output=lambda s, p, z: z),
    attention("heads not joined, transposed", HEADS, "The heads are not joined: the result has four axes.", join=lambda s, z: z.transpose(1, 2), output=lambda s, p, z: z),
    *(attention(f"{' and '.join(names)} not transposed", "the projections", "A projection is written by hand, and multiplies by the stored matrix instead of its transpose.", project=untransposed(*names)) for names in (("W_q",), ("W_k",), ("W_v",), ("W_q", "W_k", "W_v"))),
    attention("W_o not transposed", "W_o", "The output projection multiplies by the stored matrix instead of its transpose.", output=lambda s, p, z: z @ s.w[p + "W_o.weight"] + s.w[p + "W_o.bias"]),
    attention("ReLU for softmax", "the softmax", "A ReLU stands where the softmax belongs.", normalise=lambda s, t: t.relu()),
    attention("weights divided by their sum", "the softmax", "The scores are divided by their sum: the exponential is missing.", normalise=lambda s, t: (u := t.nan_to_num(neginf=0.0)) / u.sum(-1, keepdim=True)),
    attention("exponential without the sum", "the softmax", "The exponentials are not divided by their sum.", normalise=lambda s, t: t.exp()),
    attention("softmax on the values", "the values", "The values go through a softmax.", mix=lambda s, a, v: a @ v.softmax(-1)),
    attention("no output projection", "W_o", "The output projection W_o is not applied.", output=lambda s, p, z: z),
    attention("W_o without bias", "W_o", "The bias of W_o is not added.", output=lambda s, p, z: z @ s.w[p + "W_o.weight"].T),
    attention("W_o twice", "W_o", "The output projection is applied twice.", output=lambda s, p, z: s.linear(p + "W_o", s.linear(p + "W_o", z))),
    attention("W_v for the output", "W_o", "The output goes through W_v instead of W_o.", output=lambda s, p, z: s.linear(p + "W_v", z)),
    attention("W_o before the heads are mixed", "W_o", "W_o is applied to the values, before they are weighed.", project=lambda s, p, x: (s.linear(p + "W_q", x), s.linear(p + "W_k", x), s.linear(p + "W_o", s.linear(p + "W_v", x))), output=lambda s, p, z: z),
    attention("pattern transposed", "how the values are weighed", "The weights are transposed when they meet the values.", mix=lambda s, a, v: a.transpose(-1, -2) @ v),
    attention("residual inside attention", "the result", "The input is added inside attention; the residual sum belongs to the block.", attention=with_residual),
]  # fmt: skip
ATTENTION += ends("attention", ATTENTION)
