"""Known mistakes in causal self-attention."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hectogpt.grade.computation import Computation
from hectogpt.grade.mistake import Mistake
from hectogpt.grade.mistakes_layers import ends


def scaled(factor: Callable[[Computation, Tensor], float]) -> Callable[[Computation, Tensor], Tensor]:
    return lambda self, scores: scores * factor(self, scores)


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


def future(self: Computation, scores: Tensor) -> Tensor:
    return ~self.past(scores)


def future_times(value: float) -> Callable[[Computation, Tensor], Tensor]:
    return lambda self, scores: future(self, scores) * value


def fixed(value: float) -> Callable[[Computation, Tensor], float]:
    return lambda self, scores: value


def filled(where: Callable[[Computation, Tensor], Tensor], value: float) -> Callable[[Computation, Tensor], Tensor]:
    return lambda self, scores: scores.masked_fill(where(self, scores), value)


def added(value: Callable[[Computation, Tensor], Tensor]) -> Callable[[Computation, Tensor], Tensor]:
    return lambda self, scores: scores + value(self, scores).to(scores.dtype)


def band(diagonal: int) -> Callable[[Computation, Tensor], Tensor]:
    """Hidden: keys later than the query by more than `diagonal`."""
    return lambda self, scores: torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal + 1)


def after_softmax(value: float) -> Callable[[Computation, Tensor], Tensor]:
    return lambda self, scores: scores.softmax(-1).masked_fill(future(self, scores), value)


def whole_mask(self: Computation) -> Tensor:
    """[context, context]: True where the key is later than the query."""
    return torch.ones(self.size.context_length, self.size.context_length, dtype=torch.bool).triu(1)


def untransposed(*names: str) -> Callable[..., tuple[Tensor, ...]]:
    """These projections multiply by the stored matrix, not by its transpose."""

    def project(self: Computation, p: str, x: Tensor) -> tuple[Tensor, ...]:
        matrices = ((n, self.w[f"{p}{n}.weight"]) for n in ("W_q", "W_k", "W_v"))
        return tuple(x @ (w if n in names else w.T) + self.w[f"{p}{n}.bias"] for n, w in matrices)

    return project


def unsliced(self: Computation, scores: Tensor) -> Tensor:
    length = self.size.context_length
    return scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)


def hidden_before_scaling(value: float) -> Callable[[Computation, Tensor], Tensor]:
    return lambda self, scores: self.normalise(self.scale(scores + value * future(self, scores)))


def past_only_first(count: str) -> Callable[[Computation, Tensor], Tensor]:
    """The mask reaches the first row of the batch, or the first head, only."""

    def hide(self: Computation, scores: Tensor) -> Tensor:
        hidden = future(self, scores).expand_as(scores).clone()
        if count == "row":
            hidden[1:] = False
        else:
            hidden[:, 1:] = False
        return scores.masked_fill(hidden, -math.inf)

    return hide


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


# (name, sentence, factor on the scores)
SCALES: list[tuple[str, str, Callable[[Computation, Tensor], float]]] = [
    ("no scale", "The scores are not divided by anything.", lambda s, t: 1.0),
    ("scale by d_model", "The scores are divided by the root of d_model instead of the width of one head.",
     lambda s, t: s.size.d_model**-0.5),
    ("scale by n_heads", "The scores are divided by the root of the number of heads instead of the width of one head.",
     lambda s, t: s.size.n_heads**-0.5),
    ("scale twice", "The scores are divided by the width of one head; its root is asked for (or the scale is applied twice).",
     lambda s, t: 1 / s.size.d_attention),
    ("multiplied by the scale", "The scores are multiplied by the root of the head's width instead of divided.",
     lambda s, t: s.size.d_attention**0.5),
    ("divided by d_model", "The scores are divided by d_model itself.", lambda s, t: 1 / s.size.d_model),
    ("divided by n_heads", "The scores are divided by the number of heads.", lambda s, t: 1 / s.size.n_heads),
    ("scale by the sequence length", "The scores are divided by the root of the number of positions.",
     lambda s, t: t.shape[-1] ** -0.5),
    ("scale by the context length", "The scores are divided by the root of the context length.",
     lambda s, t: s.size.context_length**-0.5),
    ("fourth root of the width", "The scores are divided by the fourth root of the head's width (only q or only k is scaled?).",
     lambda s, t: s.size.d_attention**-0.25),
    ("scale by twice the width", "The scores are divided by the root of twice the head's width.",
     lambda s, t: (2 * s.size.d_attention) ** -0.5),
    ("scores negated", "The sign of the scores is wrong.", lambda s, t: -(s.size.d_attention**-0.5)),
]  # fmt: skip

# What else the scores may be divided by: (words, value). Its powers follow.
BASES: list[tuple[str, Callable[[Computation, Tensor], float]]] = [
    ("the head's width", lambda s, t: s.size.d_attention),
    ("d_model", lambda s, t: s.size.d_model),
    ("the number of heads", lambda s, t: s.size.n_heads),
    ("the sequence length", lambda s, t: t.shape[-1]),
    ("the context length", lambda s, t: s.size.context_length),
]
POWERS = {-1.0: "multiplied by", 1.0: "divided by", 1.5: "divided by the power 1.5 of", 2.0: "divided by the square of"}
NAMED_ABOVE = {("the head's width", 1.0), ("d_model", 1.0), ("the number of heads", 1.0)}


def raised(base: Callable[[Computation, Tensor], float], power: float) -> Callable[[Computation, Tensor], float]:
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
SCALES += [
    (f"scores times {n:g}", f"The scores are multiplied by {n:g}, a fixed number.", fixed(n)) for n in (0.5, 2.0, 0.1)
]

MASK = "the causal mask"
MASKS: list[tuple[str, str, Callable[[Computation, Tensor], Tensor]]] = [
    ("no causal mask", "There is no causal mask: every position sees the whole row.", lambda s, t: t),
    ("mask inverted", "The mask is inverted: the past is hidden and the future is seen.",
     filled(lambda s, t: s.past(t), -math.inf)),
    ("mask inverted, itself seen", "The mask is inverted: each position sees itself and the future.",
     filled(lambda s, t: torch.ones(t.shape[-2:], dtype=torch.bool).tril(-1), -math.inf)),
    ("diagonal masked", "The diagonal is hidden too: no position sees itself, and the first sees nothing.", filled(band(-1), -math.inf)),
    ("diagonal masked, finite", "The diagonal is hidden too: no position sees itself.", filled(band(-1), -1e9)),
    ("one future token seen", "The mask begins one place too late: each position sees one later token.", filled(band(1), -math.inf)),
    ("mask added as ones", "The mask of ones and zeros is added to the scores: 1 is added to the past, and the future stays visible.",
     added(lambda s, t: s.past(t))),
    ("mask of the future added as ones", "Ones are added to the scores of the future instead of minus infinity.", added(future)),
    ("mask subtracted as ones", "The mask is a mere 1 that is subtracted: the future stays visible.",
     added(lambda s, t: -future(s, t).to(t.dtype))),
    ("mask multiplied", "The scores are multiplied by the mask: a score of 0 is not a probability of 0.",
     lambda s, t: t * s.past(t)),
    ("mask filled with the smallest positive number", "The future is filled with a tiny positive number, not with minus infinity.",
     filled(future, torch.finfo(torch.float32).tiny)),
    ("mask of plus infinity", "The future is filled with plus infinity: the sign is missing.", filled(future, math.inf)),
    ("mask of 1e9", "The future is filled with a large positive number: the sign is missing.", filled(future, 1e9)),
    ("mask of -1", "The future is filled with -1, which a softmax does not ignore.", filled(future, -1.0)),
    ("mask of -10", "The future is filled with -10, which larger scores make visible.", filled(future, -10.0)),
    *((f"mask of {value:g}", f"The future is filled with {value:g}, which larger scores make visible.", filled(future, value))
      for value in (-2.0, -3.0, -5.0, -15.0, -20.0)),
    *((f"{value:g} added to the future", f"{value:g} is added to the scores of the future, which larger scores make visible.",
       added(future_times(value))) for value in (-2.0, -5.0, -10.0, -15.0, -20.0)),
    ("mask by absolute value", "The future is filled with 1.", filled(future, 1.0)),
    ("mask cut from the last rows", "The mask's last rows are taken, not its first: early positions see the future.",
     lambda s, t: t.masked_fill(whole_mask(s)[-t.shape[-1]:, :t.shape[-1]], -math.inf)),
    ("mask cut from the last columns", "The mask's last columns are taken, not its first: the past is hidden.",
     lambda s, t: t.masked_fill(whole_mask(s)[:t.shape[-1], -t.shape[-1]:], -math.inf)),
    ("mask not sliced", "The mask is not cut to the length of the input: shorter inputs raise an error.", unsliced),
    ("mask in the first row of the batch only", "The mask reaches the first row of the batch only.", past_only_first("row")),
    ("mask in the first head only", "The mask reaches the first head only.", past_only_first("head")),
    ("mask sees only itself", "Every position sees itself alone.",
     filled(lambda s, t: ~torch.eye(t.shape[-1], dtype=torch.bool), -math.inf)),
]  # fmt: skip

HEADS = "how heads are cut and joined"
ATTENTION = [
    *(Mistake(n, "attention", "the scale of the scores", what, {"scale": scaled(f)}) for n, what, f in SCALES),
    *(Mistake(n, "attention", MASK, what, {"hide": f}) for n, what, f in MASKS),
    Mistake("mask after softmax", "attention", "the order of mask and softmax",
            "The future is set to 0 after the softmax: the weights of a query no longer sum to 1.", {"hide": lambda s, t: t, "normalise": after_softmax(0.0)}),
    Mistake("minus infinity after softmax", "attention", "the order of mask and softmax",
            "The mask is applied to the probabilities, after the softmax.", {"hide": lambda s, t: t, "normalise": after_softmax(-math.inf)}),
    Mistake("-10 before the scaling", "attention", MASK, "A small constant is added to the future before the scaling, which weakens it.",
            {"pattern": hidden_before_scaling(-10.0)}),
    Mistake("minus infinity times zero", "attention", MASK, "Minus infinity is multiplied by the mask's zeros, which gives NaN.",
            {"hide": lambda s, t: t + future(s, t).to(t.dtype) * -math.inf}),
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
