"""Known mistakes in causal self-attention."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hectogpt.grade.computation import Change, Computation, Method, mistake
from hectogpt.grade.mistakes_layers import ends

Factor = Callable[[Computation, Tensor], float]

# --- scale and mask ---------------------------------------------------------------------------------------------------


def scaled(factor: Factor) -> Change:
    return lambda self, scores: scores * factor(self, scores)


def filled(where: Change, value: float) -> Change:
    return lambda self, scores: scores.masked_fill(where(self, scores), value)


def added(value: Change) -> Change:
    return lambda self, scores: scores + value(self, scores).to(scores.dtype)


def beside(scores: Tensor, diagonal: int) -> Tensor:
    """[query, key]: True where the key is later than the query by at least `diagonal`."""
    return torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal)


def whole_mask(self: Computation) -> Tensor:
    """[context, context]: True where the key is later than the query."""
    return torch.ones(self.size.context_length, self.size.context_length, dtype=torch.bool).triu(1)


# (name, sentence, factor on the scores)
SCALES: list[tuple[str, str, Factor]] = [
    ("no scale", "The scores are not divided by anything.", lambda s, t: 1.0),
    ("scale by d_model", "The scores are divided by the root of d_model instead of the width of one head.", lambda s, t: s.size.d_model**-0.5),
    ("scale by n_heads", "The scores are divided by the root of the number of heads instead of the width of one head.", lambda s, t: s.size.n_heads**-0.5),
    ("scale twice", "The scores are divided by the width of one head; its root is asked for (or the scale is applied twice).", lambda s, t: 1 / s.size.d_attention),
    ("multiplied by the scale", "The scores are multiplied by the root of the head's width instead of divided.", lambda s, t: s.size.d_attention**0.5),
    ("divided by d_model", "The scores are divided by d_model itself.", lambda s, t: 1 / s.size.d_model),
    ("divided by n_heads", "The scores are divided by the number of heads.", lambda s, t: 1 / s.size.n_heads),
    ("scale by the sequence length", "The scores are divided by the root of the number of positions.", lambda s, t: t.shape[-1] ** -0.5),
    ("scale by the context length", "The scores are divided by the root of the context length.", lambda s, t: s.size.context_length**-0.5),
    ("fourth root of the width", "The scores are divided by the fourth root of the head's width (only q or only k is scaled?).", lambda s, t: s.size.d_attention**-0.25),
    ("scale by twice the width", "The scores are divided by the root of twice the head's width.", lambda s, t: (2 * s.size.d_attention) ** -0.5),
    ("scores negated", "The sign of the scores is wrong.", lambda s, t: -(s.size.d_attention**-0.5)),
]  # fmt: skip

# What else the scores may be divided by: (words, value). Its powers follow.
BASES: list[tuple[str, Factor]] = [
    ("the head's width", lambda s, t: s.size.d_attention),
    ("d_model", lambda s, t: s.size.d_model),
    ("the number of heads", lambda s, t: s.size.n_heads),
    ("the sequence length", lambda s, t: t.shape[-1]),
    ("the context length", lambda s, t: s.size.context_length),
]
POWERS = {-1.0: "multiplied by", 1.0: "divided by", 1.5: "divided by the power 1.5 of", 2.0: "divided by the square of"}
NAMED_ABOVE = {("the head's width", 1.0), ("d_model", 1.0), ("the number of heads", 1.0)}


def raised(base: Factor, power: float) -> Factor:
    return lambda self, scores: base(self, scores) ** -power


SCALES += [
    (f"scores {word} {name}", f"The scores are {word} {name}.", raised(base, power))
    for name, base in BASES
    for power, word in POWERS.items()
    if (name, power) not in NAMED_ABOVE
]
SCALES += [
    (f"multiplied by the root of {name}", f"The scores are multiplied by the root of {name}.", raised(base, -0.5))
    for name, base in BASES[1:]
]

MASK = "the causal mask"
MASKS: list[tuple[str, str, Change]] = [
    ("no causal mask", "There is no causal mask: every position sees the whole row.", lambda s, t: t),
    ("mask inverted", "The mask is inverted: the past is hidden and the future is seen.", filled(lambda s, t: ~s.future(t), -math.inf)),
    ("mask inverted, itself seen", "The mask is inverted: each position sees itself and the future.", filled(lambda s, t: ~beside(t, 0), -math.inf)),
    ("diagonal masked", "The diagonal is hidden too: no position sees itself, and the first sees nothing.", filled(lambda s, t: beside(t, 0), -math.inf)),
    ("diagonal masked, finite", "The diagonal is hidden too: no position sees itself.", filled(lambda s, t: beside(t, 0), -1e9)),
    ("one future token seen", "The mask begins one place too late: each position sees one later token.", filled(lambda s, t: beside(t, 2), -math.inf)),
    ("mask added as ones", "The mask of ones and zeros is added to the scores: 1 is added to the past, and the future stays visible.", added(lambda s, t: ~s.future(t))),
    ("mask of the future added as ones", "Ones are added to the scores of the future instead of minus infinity.", added(Computation.future)),
    ("mask subtracted as ones", "The mask is a mere 1 that is subtracted: the future stays visible.", added(lambda s, t: -s.future(t).to(t.dtype))),
    ("mask multiplied", "The scores are multiplied by the mask: a score of 0 is not a probability of 0.", lambda s, t: t * ~s.future(t)),
    ("mask filled with the smallest positive number", "The future is filled with a tiny positive number, not with minus infinity.", filled(Computation.future, torch.finfo(torch.float32).tiny)),
    ("mask of plus infinity", "The future is filled with plus infinity: the sign is missing.", filled(Computation.future, math.inf)),
    ("mask of 1e9", "The future is filled with a large positive number: the sign is missing.", filled(Computation.future, 1e9)),
    ("mask cut from the last rows", "The mask's last rows are taken, not its first: early positions see the future.", lambda s, t: t.masked_fill(whole_mask(s)[-t.shape[-1]:, :t.shape[-1]], -math.inf)),
    ("mask cut from the last columns", "The mask's last columns are taken, not its first: the past is hidden.", lambda s, t: t.masked_fill(whole_mask(s)[:t.shape[-1], -t.shape[-1]:], -math.inf)),
    ("mask not sliced", "The mask is not cut to the length of the input: shorter inputs raise an error.", lambda s, t: t.masked_fill(whole_mask(s), -math.inf)),
    ("mask in the first row of the batch only", "The mask reaches the first row of the batch only.", filled(lambda s, t: s.future(t) & (torch.arange(t.shape[0]) == 0).view(-1, 1, 1, 1), -math.inf)),
    ("mask in the first head only", "The mask reaches the first head only.", filled(lambda s, t: s.future(t) & (torch.arange(t.shape[1]) == 0).view(-1, 1, 1), -math.inf)),
    ("additive mask multiplied", "The mask of zeros and minus infinity is multiplied with the scores; it is to be added.", lambda s, t: t * torch.zeros(t.shape[-2:], dtype=t.dtype).masked_fill(s.future(t), -math.inf)),
    ("mask sees only itself", "Every position sees itself alone.", filled(lambda s, t: ~torch.eye(t.shape[-1], dtype=torch.bool), -math.inf)),
]  # fmt: skip


# --- heads and projections --------------------------------------------------------------------------------------------


def projecting(
    q: str = "W_q", k: str = "W_k", v: str = "W_v", biasless: tuple[str, ...] = (), untransposed: tuple[str, ...] = ()
) -> Method:
    """Queries, keys and values from these matrices: some without their bias, or by the stored matrix itself."""

    def project(self: Computation, p: str, x: Tensor) -> tuple[Tensor, ...]:
        weights = (self.w[f"{p}{n}.weight"] if n in untransposed else self.w[f"{p}{n}.weight"].T for n in (q, k, v))
        biases = (0 if n in biasless else self.w[f"{p}{n}.bias"] for n in (q, k, v))
        return tuple(x @ w + b for w, b in zip(weights, biases, strict=True))

    return project


def deal_heads(self: Computation, t: Tensor) -> Tensor:
    """Column c belongs to head c mod n_heads."""
    batch, seq, _ = t.shape
    return t.reshape(batch, seq, -1, self.size.n_heads).permute(0, 3, 1, 2)


def heads_last(self: Computation, t: Tensor) -> Tensor:
    """Without the transposition: at each position heads attend to heads."""
    return t.unflatten(-1, (self.size.n_heads, -1))


def exchanged(self: Computation, t: Tensor) -> Tensor:
    batch, seq, _ = t.shape
    return t.reshape(batch, seq, self.size.d_attention, self.size.n_heads).transpose(1, 2)


def join_dealt(self: Computation, z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).flatten(2)


HEADS = "how heads are cut and joined"
ATTENTION = [
    *(mistake(n, "the scale of the scores", what, scale=scaled(f)) for n, what, f in SCALES),
    *(mistake(n, MASK, what, hide=f) for n, what, f in MASKS),
    mistake("mask after softmax", "the order of mask and softmax", "The future is set to 0 after the softmax: the weights of a query no longer sum to 1.", hide=lambda s, t: t, normalise=lambda s, t: t.softmax(-1).masked_fill(s.future(t), 0.0)),
    mistake("minus infinity after softmax", "the order of mask and softmax", "The mask is applied to the probabilities, after the softmax.", hide=lambda s, t: t, normalise=lambda s, t: t.softmax(-1).masked_fill(s.future(t), -math.inf)),
    mistake("scale after softmax", "the scale of the scores", "The probabilities are divided by the root of the head's width; the scores have to be.", scale=lambda s, t: t, normalise=lambda s, t: t.softmax(-1) / s.size.d_attention**0.5),
    mistake("softmax over queries", "the axis of the softmax", "The softmax runs over the queries, not over the keys.", normalise=lambda s, t: t.softmax(-2)),
    mistake("softmax over heads", "the axis of the softmax", "The softmax runs over the heads, not over the keys.", normalise=lambda s, t: t.softmax(1)),
    mistake("softmax over the batch", "the axis of the softmax", "The softmax runs over the batch, not over the keys.", normalise=lambda s, t: t.softmax(0)),
    mistake("softmax twice", "the softmax", "The softmax is applied twice.", normalise=lambda s, t: t.softmax(-1).softmax(-1)),
    mistake("no softmax", "the softmax", "There is no softmax: raw scores weigh the values.", normalise=lambda s, t: t.nan_to_num(neginf=0.0)),
    mistake("log softmax", "the softmax", "The logarithm of the softmax weighs the values.", normalise=lambda s, t: t.log_softmax(-1)),
    mistake("sigmoid for softmax", "the softmax", "A sigmoid stands where the softmax belongs.", normalise=lambda s, t: t.sigmoid()),
    mistake("NaN replaced by 0", "the softmax", "Rows of NaN are patched over with zeros: some query sees no key at all.", hide=filled(lambda s, t: beside(t, 0), -math.inf), normalise=lambda s, t: t.softmax(-1).nan_to_num(0.0)),
    mistake("q and k swapped", "queries and keys", "Queries and keys have changed places.", project=projecting("W_k", "W_q")),
    mistake("scores transposed", "the scores", "The scores are transposed: rows are keys, not queries.", scores=lambda s, q, k: k @ q.transpose(-1, -2)),
    mistake("k and v swapped", "keys and values", "Keys and values have changed places.", project=projecting(k="W_v", v="W_k")),
    mistake("q and v swapped", "queries and values", "Queries and values have changed places.", project=projecting(q="W_v", v="W_q")),
    mistake("q, k, v rotated", "queries, keys and values", "The three projections have changed places in a circle.", project=projecting("W_k", "W_v", "W_q")),
    mistake("q, k, v rotated the other way", "queries, keys and values", "The three projections have changed places in a circle.", project=projecting("W_v", "W_q", "W_k")),
    mistake("W_q for keys too", "the keys", "Keys are made with the matrix of the queries.", project=projecting(k="W_q")),
    mistake("W_k for queries too", "the queries", "Queries are made with the matrix of the keys.", project=projecting(q="W_k")),
    mistake("W_k for values too", "the values", "Values are made with the matrix of the keys.", project=projecting(v="W_k")),
    mistake("W_q for values too", "the values", "Values are made with the matrix of the queries.", project=projecting(v="W_q")),
    mistake("W_v for queries too", "the queries", "Queries are made with the matrix of the values.", project=projecting(q="W_v")),
    mistake("W_v for keys too", "the keys", "Keys are made with the matrix of the values.", project=projecting(k="W_v")),
    mistake("W_q for all three", "queries, keys and values", "One matrix, W_q, makes queries, keys and values.", project=projecting("W_q", "W_q", "W_q")),
    mistake("W_k for all three", "queries, keys and values", "One matrix, W_k, makes queries, keys and values.", project=projecting("W_k", "W_k", "W_k")),
    mistake("W_v for all three", "queries, keys and values", "One matrix, W_v, makes queries, keys and values.", project=projecting("W_v", "W_v", "W_v")),
    mistake("no biases of q, k and v", "queries, keys and values", "The biases of the three projections are not added.", project=projecting(biasless=("W_q", "W_k", "W_v"))),
    mistake("no bias of q", "the queries", "The bias of the queries is not added.", project=projecting(biasless=("W_q",))),
    mistake("no bias of v", "the values", "The bias of the values is not added.", project=projecting(biasless=("W_v",))),
    mistake("values not projected", "the values", "The values are the input itself, without W_v.", project=lambda s, p, x: (s.linear(p + "W_q", x), s.linear(p + "W_k", x), x)),
    mistake("heads cut by view without transposing", HEADS, "Heads are cut by a reshape straight to (batch, head, seq, width): positions and heads are mixed up.", cut=lambda s, t: t.reshape(t.shape[0], s.size.n_heads, t.shape[1], -1)),
    mistake("heads dealt out column by column", HEADS, "Head h takes every n_heads-th column; it has to take a run of neighbouring ones.", cut=deal_heads),
    mistake("columns dealt out and joined back", HEADS, "The two axes of the heads are mislabelled, in cutting and in joining: head h takes every n_heads-th column.", cut=deal_heads, join=join_dealt),
    mistake("one head", HEADS, "The input is not cut into heads: there is one head of the full width.", cut=lambda s, t: t[:, None], join=lambda s, z: z[:, 0]),
    mistake("heads attend to heads", HEADS, "Heads attend to heads at each position: an axis was not transposed before the product.", cut=heads_last, hide=lambda s, t: t, join=lambda s, z: z.flatten(2)),
    mistake("heads attend to heads, masked", HEADS, "Heads attend to heads at each position: an axis was not transposed before the product.", cut=heads_last, join=lambda s, z: z.flatten(2)),
    mistake("number and width of heads exchanged", HEADS, "The number of heads and their width have changed places.", cut=exchanged, scale=lambda s, t: t / s.size.n_heads**0.5),
    mistake("number and width of heads exchanged in cutting", HEADS, "The number of heads and their width have changed places.", cut=exchanged),
    mistake("first head everywhere", HEADS, "All heads compute what the first one computes.", cut=lambda s, t: t[:, None, :, : s.size.d_attention].expand(-1, s.size.n_heads, -1, -1)),
    mistake("heads joined without transposing", HEADS, "Heads are joined by a reshape without transposing first: positions and heads are mixed up.", join=lambda s, z: z.reshape(z.shape[0], z.shape[2], -1)),
    mistake("heads joined column by column", HEADS, "The joined heads are interleaved; each has to stay a run of neighbouring columns.", join=join_dealt),
    mistake("heads joined in reverse", HEADS, "The heads are joined in reverse order.", join=lambda s, z: z.flip(1).transpose(1, 2).flatten(2)),
    mistake("heads averaged", HEADS, "The heads are averaged instead of put side by side.", join=lambda s, z: z.mean(1).repeat(1, 1, s.size.n_heads)),
    mistake("heads summed", HEADS, "The heads are summed instead of put side by side.", join=lambda s, z: z.sum(1).repeat(1, 1, s.size.n_heads)),
    mistake("heads not joined", HEADS, "The heads are not joined: the result has four axes.", join=lambda s, z: z, output=lambda s, p, z: z),
    mistake("heads not joined, transposed", HEADS, "The heads are not joined: the result has four axes.", join=lambda s, z: z.transpose(1, 2), output=lambda s, p, z: z),
    *(mistake(f"{' and '.join(names)} not transposed", "the projections", "A projection is written by hand, and multiplies by the stored matrix instead of its transpose.", project=projecting(untransposed=names)) for names in (("W_q",), ("W_k",), ("W_v",), ("W_q", "W_k", "W_v"))),
    mistake("W_o not transposed", "W_o", "The output projection multiplies by the stored matrix instead of its transpose.", output=lambda s, p, z: z @ s.w[p + "W_o.weight"] + s.w[p + "W_o.bias"]),
    mistake("ReLU for softmax", "the softmax", "A ReLU stands where the softmax belongs.", normalise=lambda s, t: t.relu()),
    mistake("weights divided by their sum", "the softmax", "The scores are divided by their sum: the exponential is missing.", normalise=lambda s, t: (u := t.nan_to_num(neginf=0.0)) / u.sum(-1, keepdim=True)),
    mistake("exponential without the sum", "the softmax", "The exponentials are not divided by their sum.", normalise=lambda s, t: t.exp()),
    mistake("softmax on the values", "the values", "The values go through a softmax.", mix=lambda s, a, v: a @ v.softmax(-1)),
    mistake("no output projection", "W_o", "The output projection W_o is not applied.", output=lambda s, p, z: z),
    mistake("W_o without bias", "W_o", "The bias of W_o is not added.", output=lambda s, p, z: z @ s.w[p + "W_o.weight"].T),
    mistake("W_o twice", "W_o", "The output projection is applied twice.", output=lambda s, p, z: s.linear(p + "W_o", s.linear(p + "W_o", z))),
    mistake("W_v for the output", "W_o", "The output goes through W_v instead of W_o.", output=lambda s, p, z: s.linear(p + "W_v", z)),
    mistake("W_o before the heads are mixed", "W_o", "W_o is applied to the values, before they are weighed.", project=lambda s, p, x: (s.linear(p + "W_q", x), s.linear(p + "W_k", x), s.linear(p + "W_o", s.linear(p + "W_v", x))), output=lambda s, p, z: z),
    mistake("pattern transposed", "how the values are weighed", "The weights are transposed when they meet the values.", mix=lambda s, a, v: a.transpose(-1, -2) @ v),
    mistake("residual inside attention", "the result", "The input is added inside attention; the residual sum belongs to the block.", attention=lambda s, p, x: x + Computation.attention(s, p, x)),
]  # fmt: skip
ATTENTION += ends(ATTENTION)
