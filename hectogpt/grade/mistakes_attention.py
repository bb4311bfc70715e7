"""Known mistakes in causal self-attention."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from hectogpt.grade.computation import Computation
from hectogpt.grade.mistake import Mistake
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


HEADS = "how heads are cut and joined"
ATTENTION = [
    *(Mistake(n, "attention", "the scale of the scores", what, {"scale": scaled(f)}) for n, what, f in SCALES),
    *(Mistake(n, "attention", MASK, what, {"hide": f}) for n, what, f in MASKS),
    Mistake("mask after softmax", "attention", "the order of mask and softmax",
            "The future is set to 0 after the softmax: the weights of a query no longer sum to 1.", {"hide": lambda s, t: t, "normalise": after_softmax(0.0)}),
    Mistake("minus infinity after softmax", "attention", "the order of mask and softmax",
            "The mask is applied to the probabilities, after the softmax.", {"hide": lambda s, t: t, "normalise": after_softmax(-math.inf)}),
    Mistake("scale after softmax", "attention", "the scale of the scores", "The probabilities are divided by the root of the head's width; the scores have to be.",
            {"scale": lambda s, t: t, "normalise": lambda s, t: t.softmax(-1) / s.size.d_attention**0.5}),
    Mistake("softmax over queries", "attention", "the axis of the softmax", "The softmax runs over the queries, not over the keys.",
            {"normalise": lambda s, t: t.softmax(-2)}),
    Mistake("softmax over heads", "attention", "the axis of the softmax", "The softmax runs over the heads, not over the keys.",
            {"normalise": lambda s, t: t.softmax(1)}),
    Mistake("softmax over the batch", "attention", "the axis of the softmax", "The softmax runs over the batch, not over the keys.",
            {"normalise": lambda s, t: t.softmax(0)}),
    Mistake("softmax twice", "attention", "the softmax", "The softmax is applied twice.", {"normalise": lambda s, t: t.softmax(-1).softmax(-1)}),
    Mistake("no softmax", "attention", "the softmax", "There is no softmax: raw scores weigh the values.",
            {"normalise": lambda s, t: t.nan_to_num(neginf=0.0)}),
    Mistake("log softmax", "attention", "the softmax", "The logarithm of the softmax weighs the values.", {"normalise": lambda s, t: t.log_softmax(-1)}),
    Mistake("sigmoid for softmax", "attention", "the softmax", "A sigmoid stands where the softmax belongs.", {"normalise": lambda s, t: t.sigmoid()}),
    Mistake("NaN replaced by 0", "attention", "the softmax", "Rows of NaN are patched over with zeros: some query sees no key at all.",
            {"hide": filled(band(-1), -math.inf), "normalise": nan_to_zero}),
    Mistake("q and k swapped", "attention", "queries and keys",
            "Queries and keys have changed places.", {"project": projecting("W_k", "W_q")}),
    Mistake("scores transposed", "attention", "the scores", "The scores are transposed: rows are keys, not queries.", {"scores": lambda s, q, k: k @ q.transpose(-1, -2)}),
    Mistake("k and v swapped", "attention", "keys and values", "Keys and values have changed places.", {"project": projecting(k="W_v", v="W_k")}),
    Mistake("q and v swapped", "attention", "queries and values", "Queries and values have changed places.", {"project": projecting(q="W_v", v="W_q")}),
    Mistake("q, k, v rotated", "attention", "queries, keys and values", "The three projections have changed places in a circle.",
            {"project": projecting("W_k", "W_v", "W_q")}),
    Mistake("q, k, v rotated the other way", "attention", "queries, keys and values", "The three projections have changed places in a circle.",
            {"project": projecting("W_v", "W_q", "W_k")}),
    Mistake("W_q for keys too", "attention", "the keys", "Keys are made with the matrix of the queries.", {"project": projecting(k="W_q")}),
    Mistake("W_k for queries too", "attention", "the queries", "Queries are made with the matrix of the keys.", {"project": projecting(q="W_k")}),
    Mistake("W_k for values too", "attention", "the values", "Values are made with the matrix of the keys.", {"project": projecting(v="W_k")}),
    Mistake("W_q for values too", "attention", "the values", "Values are made with the matrix of the queries.", {"project": projecting(v="W_q")}),
    Mistake("W_v for queries too", "attention", "the queries", "Queries are made with the matrix of the values.", {"project": projecting(q="W_v")}),
    Mistake("W_v for keys too", "attention", "the keys", "Keys are made with the matrix of the values.", {"project": projecting(k="W_v")}),
    Mistake("W_q for all three", "attention", "queries, keys and values", "One matrix, W_q, makes queries, keys and values.", {"project": projecting("W_q", "W_q", "W_q")}),
    Mistake("W_k for all three", "attention", "queries, keys and values", "One matrix, W_k, makes queries, keys and values.", {"project": projecting("W_k", "W_k", "W_k")}),
    Mistake("W_v for all three", "attention", "queries, keys and values", "One matrix, W_v, makes queries, keys and values.", {"project": projecting("W_v", "W_v", "W_v")}),
    Mistake("no biases of q, k and v", "attention", "queries, keys and values", "The biases of the three projections are not added.", {"project": without_bias("W_q", "W_k", "W_v")}),
    Mistake("no bias of q", "attention", "the queries", "The bias of the queries is not added.", {"project": without_bias("W_q")}),
    Mistake("no bias of v", "attention", "the values", "The bias of the values is not added.", {"project": without_bias("W_v")}),
    Mistake("values not projected", "attention", "the values", "The values are the input itself, without W_v.",
            {"project": lambda s, p, x: (s.linear(p + "W_q", x), s.linear(p + "W_k", x), x)}),
    Mistake("heads cut by view without transposing", "attention", HEADS,
            "Heads are cut by a reshape straight to (batch, head, seq, width): positions and heads are mixed up.", {"cut": view_heads}),
    Mistake("heads dealt out column by column", "attention", HEADS, "Head h takes every n_heads-th column; it has to take a run of neighbouring ones.",
            {"cut": deal_heads}),
    Mistake("columns dealt out and joined back", "attention", HEADS,
            "The two axes of the heads are mislabelled, in cutting and in joining: head h takes every n_heads-th column.",
            {"cut": deal_heads, "join": join_dealt}),
    Mistake("one head", "attention", HEADS, "The input is not cut into heads: there is one head of the full width.",
            {"cut": one_head, "join": lambda s, z: z[:, 0]}),
    Mistake("heads attend to heads", "attention", HEADS, "Heads attend to heads at each position: an axis was not transposed before the product.",
            {"attention": across_heads}),
    Mistake("heads attend to heads, masked", "attention", HEADS, "Heads attend to heads at each position: an axis was not transposed before the product.",
            {"attention": across_heads_masked}),
    Mistake("number and width of heads exchanged", "attention", HEADS, "The number of heads and their width have changed places.",
            {"cut": exchanged, "scale": lambda s, t: t / s.size.n_heads**0.5}),
    Mistake("number and width of heads exchanged in cutting", "attention", HEADS, "The number of heads and their width have changed places.", {"cut": exchanged}),
    Mistake("first head everywhere", "attention", HEADS, "All heads compute what the first one computes.", {"cut": first_head_everywhere}),
    Mistake("heads joined without transposing", "attention", HEADS,
            "Heads are joined by a reshape without transposing first: positions and heads are mixed up.", {"join": join_untransposed}),
    Mistake("heads joined column by column", "attention", HEADS, "The joined heads are interleaved; each has to stay a run of neighbouring columns.",
            {"join": join_dealt}),
    Mistake("heads joined in reverse", "attention", HEADS, "The heads are joined in reverse order.", {"join": lambda s, z: z.flip(1).transpose(1, 2).flatten(2)}),
    Mistake("heads averaged", "attention", HEADS, "The heads are averaged instead of put side by side.",
            {"join": lambda s, z: z.mean(1).repeat(1, 1, s.size.n_heads)}),
    Mistake("heads summed", "attention", HEADS, "The heads are summed instead of put side by side.",
            {"join": lambda s, z: z.sum(1).repeat(1, 1, s.size.n_heads)}),
    Mistake("heads not joined", "attention", HEADS, "The heads are not joined: the result has four axes.", {"join": lambda s, z: z, "output": lambda s, p, z: z}),
    Mistake("heads not joined, transposed", "attention", HEADS, "The heads are not joined: the result has four axes.",
            {"join": lambda s, z: z.transpose(1, 2), "output": lambda s, p, z: z}),
    *(Mistake(f"{' and '.join(names)} not transposed", "attention", "the projections",
              "A projection is written by hand, and multiplies by the stored matrix instead of its transpose.", {"project": untransposed(*names)})
      for names in (("W_q",), ("W_k",), ("W_v",), ("W_q", "W_k", "W_v"))),
    Mistake("W_o not transposed", "attention", "W_o", "The output projection multiplies by the stored matrix instead of its transpose.",
            {"output": lambda s, p, z: z @ s.w[p + "W_o.weight"] + s.w[p + "W_o.bias"]}),
    Mistake("ReLU for softmax", "attention", "the softmax", "A ReLU stands where the softmax belongs.", {"normalise": lambda s, t: t.relu()}),
    Mistake("weights divided by their sum", "attention", "the softmax", "The scores are divided by their sum: the exponential is missing.",
            {"normalise": lambda s, t: (u := t.nan_to_num(neginf=0.0)) / u.sum(-1, keepdim=True)}),
    Mistake("exponential without the sum", "attention", "the softmax", "The exponentials are not divided by their sum.", {"normalise": lambda s, t: t.exp()}),
    Mistake("softmax on the values", "attention", "the values", "The values go through a softmax.",
            {"mix": lambda s, a, v: a @ v.softmax(-1)}),
    Mistake("no output projection", "attention", "W_o", "The output projection W_o is not applied.", {"output": lambda s, p, z: z}),
    Mistake("W_o without bias", "attention", "W_o", "The bias of W_o is not added.", {"output": lambda s, p, z: z @ s.w[p + "W_o.weight"].T}),
    Mistake("W_o twice", "attention", "W_o", "The output projection is applied twice.",
            {"output": lambda s, p, z: s.linear(p + "W_o", s.linear(p + "W_o", z))}),
    Mistake("W_v for the output", "attention", "W_o", "The output goes through W_v instead of W_o.", {"output": lambda s, p, z: s.linear(p + "W_v", z)}),
    Mistake("W_o before the heads are mixed", "attention", "W_o", "W_o is applied to the values, before they are weighed.",
            {"project": lambda s, p, x: (s.linear(p + "W_q", x), s.linear(p + "W_k", x), s.linear(p + "W_o", s.linear(p + "W_v", x))),
             "output": lambda s, p, z: z}),
    Mistake("pattern transposed", "attention", "how the values are weighed", "The weights are transposed when they meet the values.",
            {"mix": lambda s, a, v: a.transpose(-1, -2) @ v}),
    Mistake("residual inside attention", "attention", "the result", "The input is added inside attention; the residual sum belongs to the block.",
            {"attention": with_residual}),
]  # fmt: skip
ATTENTION += ends("attention", ATTENTION)
