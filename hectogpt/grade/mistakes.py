"""The known mistakes of each part, an entry a line: MISTAKES, those that show in what it returns; and GRADIENTS, those
that leave every value right and break the gradient."""

# ruff: noqa: E501  # tables, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hectogpt.grade.computation import Change, Computation, Method, Mistake

# --- GELU, MLP, block --------------------------------------------------------------------------------------------------

CURVES: dict[str, tuple[str, Change]] = {
    "erf GELU": ("it is the exact unit, by erf; the assignment asks for its tanh form", lambda s, x: F.gelu(x)),
    "ReLU for GELU": ("it is a ReLU", lambda s, x: x.relu()),
    "SiLU for GELU": ("it is x times the sigmoid of x (SiLU)", lambda s, x: F.silu(x)),
    "sigmoid GELU": ("it is the sigmoid approximation (factor 1.702), another one", lambda s, x: x * (1.702 * x).sigmoid()),
    "bracket misplaced in GELU": ("the factor sqrt(2/pi) multiplies x alone; it stands before the whole bracket", lambda s, x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x + 0.044715 * x**3))),
    "1 + inside tanh": ("the 1 is added inside tanh", lambda s, x: 0.5 * x * torch.tanh(1 + math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "no x before the bracket": ("the x before the bracket is missing", lambda s, x: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    "x squared in GELU": ("the power of x inside tanh is 2 instead of 3", lambda s, x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**2)))),
}  # fmt: skip

GELU = [Mistake(name, "GELU.forward", what + ".", gelu=f) for name, (what, f) in CURVES.items()]


MLP = [
    *(Mistake(name, "the activation between fc1 and fc2", f"The activation is not the tanh GELU: {what}.", bend=f) for name, (what, f) in CURVES.items() if name in ("erf GELU", "sigmoid GELU") or name.endswith("for GELU")),
    Mistake("no GELU", "the activation between fc1 and fc2", "There is no activation between the two linear layers.", bend=lambda s, h: h),
    Mistake("GELU after fc2 too", "after fc2", "The result of the second layer goes through GELU once more.", narrow=lambda s, p, h: s.gelu(s.linear(p + "fc2", h))),
    Mistake("fc1 without bias", "fc1", "The bias of the first layer is not added.", widen=lambda s, p, x: x @ s.w[p + "fc1.weight"].T),
    Mistake("fc2 without bias", "fc2", "The bias of the second layer is not added.", narrow=lambda s, p, x: x @ s.w[p + "fc2.weight"].T),
    Mistake("no fc2", "fc2", "The second layer is not applied: the result has width 4 d_model.", narrow=lambda s, p, h: h),
    Mistake("residual inside the MLP", "the result", "The input is added inside the MLP; the residual sum belongs to the block.", mlp=lambda s, p, x: x + Computation.mlp(s, p, x)),
]  # fmt: skip


# What is done to a part's result at its end, in whatever part.
ENDS = [
    Mistake("ReLU at the end", "the result", "The result goes through a ReLU.", after=lambda s, y: y.relu()),
    Mistake("softmax at the end", "the result", "The result goes through a softmax.", after=lambda s, y: y.softmax(-1)),
    Mistake("norm at the end", "the result", "The result is normalised, without gain and bias.", after=lambda s, y: F.layer_norm(y, y.shape[-1:], eps=1e-5)),
    Mistake("last position only", "the result", "Only the last position comes back.", after=lambda s, y: y[:, -1]),
    Mistake("rows and positions swapped", "the result", "The axes of batch and positions are swapped in the result.", after=lambda s, y: y.transpose(0, 1)),
    Mistake("axes of length one squeezed away", "the result", "Axes of length one are squeezed away.", after=lambda s, y: y.squeeze()),
]  # fmt: skip


def normalised(axis: int = -1, mean: bool = True, sample: int = 0, outside: bool = False) -> Method:
    """A norm over another axis, without the mean, by the sample variance (sample=1), with eps outside the root."""

    def norm(self: Computation, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(axis, keepdim=True) if mean else x
        variance = (centred**2).mean(axis, keepdim=True) * (x.shape[axis] / (x.shape[axis] - sample))
        root = variance.sqrt() + self.eps() if outside else torch.sqrt(variance + self.eps())
        return self.affine(name, centred / root)

    return norm


# Mistakes in a norm written by hand, in whatever part it stands: (name, sentence, method, what takes its place).
NORM_MISTAKES: list[tuple[str, str, str, Method]] = [
    ("norm over positions", "The norm is taken over positions, not over d_model.", "norm", normalised(1)),
    ("RMS norm", "The mean is not subtracted: this is an RMS norm.", "norm", normalised(mean=False)),
    ("norm by the sample variance", "The norm is written by hand with the sample variance, divided by n - 1; layer norm divides by n.", "norm", normalised(sample=1)),
    ("norm by the sample deviation", "The norm is written by hand with the sample deviation (divided by n - 1), to which eps is added.", "norm", normalised(sample=1, outside=True)),
    ("eps outside the root", "Eps is added to the deviation; it belongs to the variance, under the root.", "norm", normalised(outside=True)),
    ("norm divided by the variance", "The variance divides, not its root.", "norm", lambda s, name, x: s.affine(name, (c := x - x.mean(-1, keepdim=True)) / ((c**2).mean(-1, keepdim=True) + s.eps()))),
    ("norm without gain and bias", "The norm's gain and bias are not applied.", "affine", lambda s, n, x: x),
    ("norm without bias", "The norm's bias is not added.", "affine", lambda s, n, x: x * s.w[n + ".weight"]),
]  # fmt: skip


Half = Callable[[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], Tensor]  # of stream, norm and part


PLACES = {
    "": "both halves of the block",
    " at attention": "the attention half of the block",
    " at the MLP": "the MLP half of the block",
}


def halves(change: Half, place: str = "") -> dict[str, Method]:
    """A change in both halves of the block, or in one."""
    methods: dict[str, tuple[str, Method]] = {
        " at attention": ("first_half", lambda s, p, x: change(x, partial(s.first_norm, p), partial(s.attend, p))),
        " at the MLP": ("second_half", lambda s, p, x: change(x, partial(s.second_norm, p), partial(s.think, p))),
    }
    return dict(changed for where, changed in methods.items() if place in ("", where))


# What may be wrong in either half of the block, or in both: name, sentence, and what such a half computes.
HALVES: list[tuple[str, str, Half]] = [
    ("post-norm", "the norm is applied to the sum; GPT-2 normalises what goes into the part", lambda x, norm, part: norm(x + part(x))),
    ("norm after the part", "the norm is applied to what the part returns, not to what goes into it", lambda x, norm, part: x + norm(part(x))),
    ("residual from the normalised stream", "the normalised stream is added to; it has to be the stream before the norm", lambda x, norm, part: (y := norm(x)) + part(y)),
    ("no residual", "the input is not added to what the part returns", lambda x, norm, part: part(norm(x))),
    ("no norm", "what goes into the part is not normalised", lambda x, norm, part: x + part(x)),
]  # fmt: skip
SUMS, NORMS = "the residual sums", "where the norms stand"
_, FIRST, SECOND = PLACES.values()
BLOCK = [
    Mistake("norms swapped", "which norm belongs to which part", "The two norms are swapped. Mind the names: post_layer_norm is the norm before the MLP.", first_norm=lambda s, p, x: s.norm(p + "post_layer_norm", x), second_norm=lambda s, p, x: s.norm(p + "pre_layer_norm", x)),
    Mistake("pre_layer_norm used twice", "the norm before the MLP", "pre_layer_norm is used before both parts.", second_norm=lambda s, p, x: s.norm(p + "pre_layer_norm", x)),
    Mistake("post_layer_norm used twice", "the norm before attention", "post_layer_norm is used before both parts.", first_norm=lambda s, p, x: s.norm(p + "post_layer_norm", x)),
    Mistake("parallel block", "what goes into the MLP", "Both parts read the block's input; the MLP has to read the stream after attention was added.", block=lambda s, p, x: x + s.attend(p, s.first_norm(p, x)) + s.think(p, s.second_norm(p, x))),
    Mistake("second residual from the block's input", SUMS, "The second sum starts from the block's input: what attention added is lost from the stream.", block=lambda s, p, x: x + s.think(p, s.second_norm(p, s.first_half(p, x)))),
    Mistake("MLP before attention", "the order of the parts", "The MLP comes first; attention has to.", block=lambda s, p, x: s.first_half(p, s.second_half(p, x))),
    Mistake("no attention", FIRST, "Attention is not used.", first_half=lambda s, p, x: x),
    Mistake("no MLP", SECOND, "The MLP is not used.", second_half=lambda s, p, x: x),
    *(Mistake(name + at, where, f"In {where} {what}.", **halves(change, at)) for name, what, change in HALVES for at, where in PLACES.items()),
    *(Mistake(name, "the norms", what, **{method: f}) for name, what, method, f in NORM_MISTAKES),
]  # fmt: skip


# --- attention ---------------------------------------------------------------------------------------------------------

Factor = Callable[[Computation, Tensor], float]


def beside(scores: Tensor, diagonal: int) -> Tensor:
    """[query, key]: True where the key is later than the query by at least `diagonal`."""
    return torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal)


# What the scores may be multiplied with or divided by.
SIZES: dict[str, Factor] = {
    "the head's width": lambda s, t: s.size.d_attention,
    "d_model": lambda s, t: s.size.d_model,
    "the number of heads": lambda s, t: s.size.n_heads,
    "the sequence length": lambda s, t: t.shape[-1],
    "the context length": lambda s, t: s.size.context_length,
}
POWERS = {"multiplied by": 1.0, "multiplied by the root of": 0.5, "divided by": -1.0, "divided by the root of": -0.5}


def scaled(how: str, name: str) -> Mistake:
    """The scores with a size in some power in place of the root of the head's width."""
    short = f"scale by {name}" if how == "divided by the root of" else f"scores {how} {name}"
    what = f"The scores are {how} {name}; they are to be divided by the root of the head's width."
    return Mistake(short, "the scale of the scores", what, scale=lambda s, t: t * SIZES[name](s, t) ** POWERS[how])


def projecting(matrices: str = "qkv", biasless: str = "", untransposed: str = "") -> Method:
    """Queries, keys and values from these matrices: some without their bias, or by the stored matrix itself."""

    def project(self: Computation, p: str, x: Tensor) -> tuple[Tensor, ...]:
        weights = (self.w[f"{p}W_{n}.weight"] if n in untransposed else self.w[f"{p}W_{n}.weight"].T for n in matrices)
        biases = (0 if n in biasless else self.w[f"{p}W_{n}.bias"] for n in matrices)
        return tuple(x @ w + b for w, b in zip(weights, biases, strict=True))

    return project


def deal_heads(self: Computation, t: Tensor) -> Tensor:
    """Column c belongs to head c mod n_heads."""
    batch, seq, _ = t.shape
    return t.reshape(batch, seq, -1, self.size.n_heads).permute(0, 3, 1, 2)


def heads_last(self: Computation, t: Tensor) -> Tensor:
    """Without the transposition: at each position heads attend to heads."""
    return t.unflatten(-1, (self.size.n_heads, -1))


def join_dealt(self: Computation, z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).flatten(2)


QKV = {"q": "queries", "k": "keys", "v": "values"}
SCALE, MASK, HEADS = "the scale of the scores", "the causal mask", "how heads are cut and joined"
ATTENTION = [
    Mistake("no scale", SCALE, "The scores are not divided by anything.", scale=lambda s, t: t),
    Mistake("fourth root of the width", SCALE, "The scores are divided by the fourth root of the head's width (only q or only k is scaled?).", scale=lambda s, t: t * s.size.d_attention**-0.25),
    *(scaled(how, name) for name in SIZES for how in POWERS if (name, how) != ("the head's width", "divided by the root of")),
    Mistake("no causal mask", MASK, "There is no causal mask: every position sees the whole row.", hide=lambda s, t: t),
    Mistake("mask inverted", MASK, "The mask is inverted: the past is hidden and the future is seen.", hide=lambda s, t: t.masked_fill(~s.future(t), -math.inf)),
    Mistake("diagonal masked", MASK, "The diagonal is hidden too: no position sees itself, and the first sees nothing.", hide=lambda s, t: t.masked_fill(beside(t, 0), -math.inf)),
    Mistake("diagonal masked, finite", MASK, "The diagonal is hidden too: no position sees itself.", hide=lambda s, t: t.masked_fill(beside(t, 0), -1e9)),
    Mistake("one future token seen", MASK, "The mask begins one place too late: each position sees one later token.", hide=lambda s, t: t.masked_fill(beside(t, 2), -math.inf)),
    Mistake("mask added as ones", MASK, "The mask of ones and zeros is added to the scores: 1 is added to the past, and the future stays visible.", hide=lambda s, t: t + ~s.future(t)),
    Mistake("mask multiplied", MASK, "The scores are multiplied by the mask: a score of 0 is not a probability of 0.", hide=lambda s, t: t * ~s.future(t)),
    Mistake("mask filled with the smallest positive number", MASK, "The future is filled with a tiny positive number, not with minus infinity.", hide=lambda s, t: t.masked_fill(s.future(t), torch.finfo(torch.float32).tiny)),
    Mistake("mask of plus infinity", MASK, "The future is filled with plus infinity: the sign is missing.", hide=lambda s, t: t.masked_fill(s.future(t), math.inf)),
    Mistake("mask of 1e9", MASK, "The future is filled with a large positive number: the sign is missing.", hide=lambda s, t: t.masked_fill(s.future(t), 1e9)),
    Mistake("mask not sliced", MASK, "The mask is not cut to the length of the input: shorter inputs raise an error.", hide=lambda s, t: t.masked_fill(torch.ones(s.size.context_length, s.size.context_length, dtype=torch.bool).triu(1), -math.inf)),
    Mistake("additive mask multiplied", MASK, "The mask of zeros and minus infinity is multiplied with the scores; it is to be added.", hide=lambda s, t: t * torch.zeros(t.shape[-2:], dtype=t.dtype).masked_fill(s.future(t), -math.inf)),
    Mistake("mask after softmax", "the order of mask and softmax", "The future is set to 0 after the softmax: the weights of a query no longer sum to 1.", hide=lambda s, t: t, normalise=lambda s, t: t.softmax(-1).masked_fill(s.future(t), 0.0)),
    Mistake("minus infinity after softmax", "the order of mask and softmax", "The mask is applied to the probabilities, after the softmax.", hide=lambda s, t: t, normalise=lambda s, t: t.softmax(-1).masked_fill(s.future(t), -math.inf)),
    Mistake("scale after softmax", SCALE, "The probabilities are divided by the root of the head's width; the scores have to be.", scale=lambda s, t: t, normalise=lambda s, t: t.softmax(-1) / s.size.d_attention**0.5),
    Mistake("softmax over queries", "the axis of the softmax", "The softmax runs over the queries, not over the keys.", normalise=lambda s, t: t.softmax(-2)),
    Mistake("softmax twice", "the softmax", "The softmax is applied twice.", normalise=lambda s, t: t.softmax(-1).softmax(-1)),
    Mistake("no softmax", "the softmax", "There is no softmax: raw scores weigh the values.", normalise=lambda s, t: t.nan_to_num(neginf=0.0)),
    Mistake("log softmax", "the softmax", "The logarithm of the softmax weighs the values.", normalise=lambda s, t: t.log_softmax(-1)),
    Mistake("NaN replaced by 0", "the softmax", "Rows of NaN are patched over with zeros: some query sees no key at all.", hide=lambda s, t: t.masked_fill(beside(t, 0), -math.inf), normalise=lambda s, t: t.softmax(-1).nan_to_num(0.0)),
    Mistake("q and k swapped", "queries and keys", "Queries and keys have changed places.", project=projecting("kqv")),
    Mistake("scores transposed", "the scores", "The scores are transposed: rows are keys, not queries.", scores=lambda s, q, k: k @ q.transpose(-1, -2)),
    *(Mistake(f"{name} and v swapped", f"{words} and values", f"{words.capitalize()} and values have changed places.", project=projecting(matrices)) for name, words, matrices in (("k", "keys", "qvk"), ("q", "queries", "vkq"))),
    *(Mistake(f"W_{name} for {QKV[to]} too", f"the {QKV[to]}", f"{QKV[to].capitalize()} are made with the matrix of the {QKV[name]}.", project=projecting("qkv".replace(to, name))) for name, to in permutations(QKV, 2)),
    *(Mistake(f"W_{name} for all three", "queries, keys and values", f"One matrix, W_{name}, makes queries, keys and values.", project=projecting(name * 3)) for name in QKV),
    Mistake("no biases of q, k and v", "queries, keys and values", "The biases of the three projections are not added.", project=projecting(biasless="qkv")),
    *(Mistake(f"no bias of {name}", f"the {QKV[name]}", f"The bias of the {QKV[name]} is not added.", project=projecting(biasless=name)) for name in "qv"),
    Mistake("values not projected", "the values", "The values are the input itself, without W_v.", project=lambda s, p, x: (s.linear(p + "W_q", x), s.linear(p + "W_k", x), x)),
    Mistake("heads cut by view without transposing", HEADS, "Heads are cut by a reshape straight to (batch, head, seq, width): positions and heads are mixed up.", cut=lambda s, t: t.reshape(t.shape[0], s.size.n_heads, t.shape[1], -1)),
    Mistake("heads dealt out column by column", HEADS, "Head h takes every n_heads-th column; it has to take a run of neighbouring ones.", cut=deal_heads),
    Mistake("columns dealt out and joined back", HEADS, "The two axes of the heads are mislabelled, in cutting and in joining: head h takes every n_heads-th column.", cut=deal_heads, join=join_dealt),
    Mistake("one head", HEADS, "The input is not cut into heads: there is one head of the full width.", cut=lambda s, t: t[:, None], join=lambda s, z: z[:, 0]),
    Mistake("heads attend to heads", HEADS, "Heads attend to heads at each position: an axis was not transposed before the product.", cut=heads_last, hide=lambda s, t: t, join=lambda s, z: z.flatten(2)),
    Mistake("heads attend to heads, masked", HEADS, "Heads attend to heads at each position: an axis was not transposed before the product.", cut=heads_last, join=lambda s, z: z.flatten(2)),
    Mistake("number and width of heads exchanged in cutting", HEADS, "The number of heads and their width have changed places.", cut=lambda s, t: t.reshape(*t.shape[:2], s.size.d_attention, s.size.n_heads).transpose(1, 2)),
    Mistake("heads joined without transposing", HEADS, "Heads are joined by a reshape without transposing first: positions and heads are mixed up.", join=lambda s, z: z.reshape(z.shape[0], z.shape[2], -1)),
    Mistake("heads joined column by column", HEADS, "The joined heads are interleaved; each has to stay a run of neighbouring columns.", join=join_dealt),
    Mistake("heads not joined", HEADS, "The heads are not joined: the result has four axes.", join=lambda s, z: z, output=lambda s, p, z: z),
    *(Mistake(f"{' and '.join(f'W_{name}' for name in names)} not transposed", "the projections", "A projection is written by hand, and multiplies by the stored matrix instead of its transpose.", project=projecting(untransposed=names)) for names in ("q", "k", "v", "qkv")),
    Mistake("W_o not transposed", "W_o", "The output projection multiplies by the stored matrix instead of its transpose.", output=lambda s, p, z: z @ s.w[p + "W_o.weight"] + s.w[p + "W_o.bias"]),
    Mistake("no output projection", "W_o", "The output projection W_o is not applied.", output=lambda s, p, z: z),
    Mistake("W_o without bias", "W_o", "The bias of W_o is not added.", output=lambda s, p, z: z @ s.w[p + "W_o.weight"].T),
    Mistake("residual inside attention", "the result", "The input is added inside attention; the residual sum belongs to the block.", attention=lambda s, p, x: x + Computation.attention(s, p, x)),
]  # fmt: skip


# --- forward, generate, loss -------------------------------------------------------------------------------------------


def positioned(index: Change) -> Change:
    return lambda self, ids: self.w["position_embeddings.weight"][index(self, ids)].expand(*ids.shape, -1)


def final(method: str, change: Method) -> Change:
    """The final norm alone with a mistake in a norm."""

    def norm(self: Computation, x: Tensor) -> Tensor:
        return type("Final", (Computation,), {method: change})(self.w, self.size).norm("final_layer_norm", x)

    return norm


P, T, B = "the position embeddings", "the token embeddings", "the loop over the blocks"
FORWARD = [
    Mistake("no position embeddings", P, "The position embeddings are not added.", positions=lambda s, ids: torch.zeros(())),
    Mistake("positions from 1", P, "Positions are counted from 1.", positions=positioned(lambda s, ids: torch.arange(1, ids.shape[1] + 1))),
    Mistake("positions from 1, modulo the context", P, "Positions are counted from 1, and the last one is 0 again.", positions=positioned(lambda s, ids: torch.arange(1, ids.shape[1] + 1) % s.size.context_length)),
    Mistake("positions from the batch axis", P, "Positions are counted along the batch: all tokens of a row have the same one.", positions=positioned(lambda s, ids: torch.arange(ids.shape[0])[:, None])),
    Mistake("whole position table", P, "The whole position table is added, whatever the length of the input.", positions=lambda s, ids: s.w["position_embeddings.weight"].expand(ids.shape[0], -1, -1)),
    Mistake("token embeddings times the root of d_model", T, "The token embeddings are multiplied by the root of d_model, as in the first transformer; GPT-2 does not.", tokens=lambda s, ids: s.w["embeddings.weight"][ids] * s.size.d_model**0.5),
    Mistake("no blocks", B, "The blocks are not applied.", layers=lambda s, n: []),
    Mistake("first block only", B, "Only the first block is applied.", layers=lambda s, n: [0]),
    Mistake("last block skipped", B, "The last block is left out.", layers=lambda s, n: list(range(n - 1))),
    Mistake("first block skipped", B, "The first block is left out.", layers=lambda s, n: list(range(1, n))),
    Mistake("first block each time", B, "The first block is applied n times instead of each block once.", layers=lambda s, n: [0] * n),
    Mistake("last block each time", B, "The last block is applied n times instead of each block once; perhaps one block object stands in all places.", layers=lambda s, n: [n - 1] * n),
    Mistake("each block reads the embeddings", B, "Every block reads the embeddings: the result of the one before is thrown away.", backbone=lambda s, x: s.block(f"backbone.{s.size.n_layers - 1}.", x)),
    Mistake("no final norm", "the final norm", "The final norm is not applied.", final_norm=lambda s, x: x),
    *(Mistake(f"final {name}" if name[0] != "R" else "final RMS norm", "the final norm", what, final_norm=final(method, f)) for name, what, method, f in NORM_MISTAKES if "eps" not in name),  # its input is too large for eps to show
    Mistake("head tied to the embeddings", "the head", "The logits are made with the embeddings; lm_head is a matrix of its own here.", head=lambda s, x: x @ s.w["embeddings.weight"].T),
    Mistake("no head", "the head", "The head is not applied: vectors of d_model come back, not a score for each token.", head=lambda s, x: x),
    Mistake("log softmax returned", "the result", "Log-probabilities come back, not logits.", after=lambda s, y: y.log_softmax(-1)),
    Mistake("argmax returned", "the result", "The likeliest tokens come back, not logits.", after=lambda s, y: y.argmax(-1)),
    Mistake("logits flattened", "the result", "The axes of batch and positions are merged in the result.", after=lambda s, y: y.flatten(0, 1)),
]  # fmt: skip


C, R = "the choice of the next token", "the text that comes back"
GENERATE = [
    Mistake("row 0's token for every row", C, "Every row gets the token that the first row chose.", choose=lambda s, y: y[:1].argmax(-1, keepdim=True).expand(y.shape[0], 1)),
    Mistake("logits of the first position", C, "The logits of the first position choose the token.", last=lambda s, y: y[:, 0]),
    Mistake("second-last position", C, "The logits of the second-last position choose the token, wherever there are two.", last=lambda s, y: y[:, -2 if y.shape[1] > 1 else -1]),
    Mistake("argmax over the batch", C, "The maximum is taken over the batch axis: row numbers are used as tokens.", choose=lambda s, y: y.argmax(0)[: y.shape[0], None]),
    Mistake("argmax over positions", C, "The maximum is taken over the positions, not over the vocabulary.", last=lambda s, y: y, choose=lambda s, y: y.argmax(1)[:, -1:]),
    Mistake("logits for tokens", C, "The value of the highest logit is appended instead of its token.", choose=lambda s, y: y.max(-1, keepdim=True).values.long()),
    Mistake("context does not grow", "what the model is given at each step", "The model is given the prompt alone at each step: the same token comes again and again.", context=lambda s, text, ids, n: s.window(ids)),
    Mistake("only the last token as context", "what the model is given at each step", "Each step gives the model the last token alone.", window=lambda s, ids: ids[:, -1:]),
    Mistake("prompt at first, then the last token alone", "what the model is given at each step", "After the first step the model is given the new token alone.", context=lambda s, text, ids, n: s.window(ids) if text is ids else text[:, -1:]),
    Mistake("last token missing in the context", "what the model is given at each step", "The model is given the text without its last token.", window=lambda s, ids: ids[:, :-1] if ids.shape[1] > 1 else ids),
    Mistake("all tokens from one pass", "what the model is given at each step", "All new tokens are read from one pass over the prompt.", result=lambda s, t, p: torch.cat([p, s.forward(s.window(p)).argmax(-1)[:, p.shape[1] - t.shape[1] :]], 1)),
    Mistake("only new tokens returned", R, "Only the new tokens come back; the prompt has to come first.", result=lambda s, t, p: t[:, p.shape[1] :]),
    Mistake("batch axis dropped", R, "The first row comes back without the batch axis.", result=lambda s, t, p: t[0]),
    Mistake("floats returned", R, "Tokens come back as floating-point numbers.", result=lambda s, t, p: t.double()),
    Mistake("returned text cropped", R, "The returned text is cut to the context, so that the beginning of the prompt is lost; only what the model is given may be cut.", append=lambda s, ids, t: torch.cat([s.window(ids), t], 1)),
    Mistake("num_new_tokens taken as the total length", "the number of new tokens", "num_new_tokens is taken as the length of the whole text.", count=lambda s, ids, n: n - ids.shape[1]),
    Mistake("one token too few", "the number of new tokens", "One token too few is made.", count=lambda s, ids, n: n - 1),
    Mistake("one token too many", "the number of new tokens", "One token too many is made.", count=lambda s, ids, n: n + 1),
    Mistake("one token only", "the number of new tokens", "One token is made, whatever num_new_tokens says.", count=lambda s, ids, n: 1),
]  # fmt: skip


def scrambled(self: Computation, logits: Tensor, targets: Tensor) -> Tensor:
    """(batch, n, vocab) viewed as (batch, vocab, n), and that as rows: classes and positions are mixed up."""
    batch, n, vocab = logits.shape
    return F.cross_entropy(logits.reshape(batch, vocab, n), targets, reduction="none")


S, L = "which logits are held against which tokens", "the mean"
LOSS = [
    Mistake("no shift", S, "There is no shift: each position is held against its own token, which it has seen.", align=lambda s, y, t: (y, t)),
    Mistake("no shift, last position left out", S, "There is no shift: each position is held against its own token, which it has seen.", align=lambda s, y, t: (y[:, :-1], t[:, :-1])),
    Mistake("no shift, first position left out", S, "There is no shift: each position is held against its own token, which it has seen.", align=lambda s, y, t: (y[:, 1:], t[:, 1:])),
    Mistake("shift twice", S, "The shift is made twice: each position is held against the token after the next.", align=lambda s, y, t: (y[:, :-2], t[:, 2:])),
    Mistake("shift the wrong way", S, "The shift goes the wrong way: each position is held against the token before it.", align=lambda s, y, t: (y[:, 1:], t[:, :-1])),
    Mistake("targets rolled", S, "The targets are rolled: the last position is held against the row's first token.", align=lambda s, y, t: (y, t.roll(-1, 1))),
    Mistake("shift after flattening", S, "The shift is made after the rows were joined: the end of a row predicts the next row's start.", align=lambda s, y, t: (y.flatten(0, 1)[None, :-1], t.flatten()[None, 1:])),
    Mistake("no shift, first token left out", S, "There is no shift: the model is given the very tokens that it is held against.", seen=lambda s, ids: ids[:, 1:], align=lambda s, y, t: (y, t[:, 1:])),
    Mistake("softmax before cross entropy", "the cross entropy", "Cross entropy is given probabilities; it makes its own from logits.", surprise=lambda s, y, t: Computation.surprise(s, y.softmax(-1), t)),
    Mistake("sign", "the cross entropy", "The sign is wrong: this is the log-likelihood.", finish=lambda s, x, t: -x),
    Mistake("bits for nats", "the cross entropy", "The logarithm has base 2.", finish=lambda s, x, t: x / math.log(2)),
    Mistake("probability for its logarithm", "the cross entropy", "The logarithm is missing: probabilities are averaged.", surprise=lambda s, y, t: -(-Computation.surprise(s, y, t)).exp()),
    Mistake("raw logits of the targets", "the cross entropy", "The softmax is missing: raw logits of the targets are averaged.", surprise=lambda s, y, t: -y.gather(-1, t[..., None])[..., 0]),
    Mistake("vocabulary and positions mixed up", "the cross entropy", "The logits are reshaped where they have to be transposed: vocabulary and positions are mixed up.", surprise=scrambled),
    Mistake("sum for mean", L, "The losses are summed, not averaged.", reduce=lambda s, x, t: x.sum()),
    Mistake("sum over positions", L, "The losses are summed over the positions and averaged over the rows.", reduce=lambda s, x, t: x.sum() / x.shape[0]),
    Mistake("divided by all positions", L, "The sum is divided by all positions, though the last makes no prediction.", reduce=lambda s, x, t: x.sum() / (x.shape[0] * (x.shape[1] + 1))),
    Mistake("divided by the batch size once more", L, "The mean is divided by the batch size once more.", finish=lambda s, x, t: x / t.shape[0]),
    Mistake("token 0 ignored", L, "Token 0 is left out of the mean, as if it were padding.", reduce=lambda s, x, t: x[t != 0].mean()),
    Mistake("a loss per position", L, "The losses are not averaged: a number per position comes back.", reduce=lambda s, x, t: x),
    Mistake("perplexity", L, "The exponential of the loss comes back (the perplexity).", finish=lambda s, x, t: x.exp()),
]  # fmt: skip

MISTAKES = {
    "gelu": GELU,
    "mlp": MLP + ENDS,
    "attention": ATTENTION + ENDS,
    "block": BLOCK + ENDS,
    "forward": FORWARD + ENDS,
    "generate": GENERATE,
    "loss": LOSS,
}


# --- the gradient: what is detached, or taken by .data ----------------------------------------------------------------


def detached(method: str) -> Method:
    """The right method, whose result carries no gradient."""

    def right(self: Computation, *arguments: Any) -> Any:
        made = getattr(Computation, method)(self, *arguments)
        return tuple(t.detach() for t in made) if isinstance(made, tuple) else made.detach()

    return right


def of_detached(method: str) -> Method:
    """The right method of an input that carries no gradient."""
    return lambda self, *a: getattr(Computation, method)(self, *a[:-1], a[-1].detach())


def cut(
    name: str, where: str, *methods: str, by: Callable[[str], Method] = detached, what: str = "", **changes: Method
) -> Mistake:
    """Something, which is also where to look if nothing else is said, is cut off by these methods, or by changes."""
    sentence = f"{(what or where)[0].upper()}{(what or where)[1:]} is cut off from the gradient: detached, taken by .data, or computed under no_grad."
    return Mistake(name, where, sentence, **{method: by(method) for method in methods} | changes)


RESULT = "the result"
GRADIENTS: dict[str, list[Mistake]] = {
    "gelu": [
        cut("no gradient", "GELU.forward", "gelu", what=RESULT),
        cut("tanh detached", "GELU.forward", what="what stands in the bracket with tanh", gelu=lambda s, x: x * (Computation.gelu(s, x) / x).detach()),
    ],
    "mlp": [
        cut("no gradient", "MLP.forward", "narrow", what=RESULT),
        cut("input detached", "what goes into fc1", "widen", by=of_detached, what="the input"),
    ],
    "attention": [
        cut("no gradient", "CausalAttention.forward", "output", what=RESULT),
        cut("pattern detached", "scores and softmax", "pattern", what="the pattern of attention"),
        cut("input detached", "what goes into W_q, W_k and W_v", "project", by=of_detached, what="the input"),
        *(cut(f"{words} detached", f"the {words}", what=f"what {name} returns", project=lambda s, p, x, name=name: tuple(t.detach() if n == name else t for n, t in zip(("W_q", "W_k", "W_v"), Computation.project(s, p, x), strict=True))) for name, words in (("W_q", "queries"), ("W_k", "keys"), ("W_v", "values"))),
    ],
    "block": [
        cut("no gradient", "DecoderBlock.forward", "second_half", what=RESULT),
        *(cut("residual detached" + at, "the residual sums", what=f"the stream that is added to in {where}", **halves(lambda x, norm, part: x.detach() + part(norm(x)), at)) for at, where in PLACES.items()),
        cut("attention under no_grad", "the attention half of the block", "attend", what="what attention returns"),
        cut("MLP under no_grad", "the MLP half of the block", "think", what="what the MLP returns"),
        cut("input detached", "the block's input", "first_half", by=of_detached),
        cut("stream detached between the halves", "between attention and MLP", "second_half", by=of_detached, what="the stream between attention and MLP"),
    ],
    "forward": [
        cut("no gradient", "Transformer.forward", "head", what=RESULT),
        cut("embeddings detached", "what goes into the blocks", "embed"),
        cut("blocks under no_grad", "what comes out of the blocks", "backbone"),
        cut("stream detached before each block", "the loop over the blocks", "block", by=of_detached, what="what goes into each block"),
    ],
    "loss": [Mistake("no gradient", "the gradient", "The result carries no gradient: it was detached or made a plain number.", finish=detached("finish"))],
}  # fmt: skip
