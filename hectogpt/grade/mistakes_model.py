"""Known mistakes in Transformer.forward, generate and get_loss_on_batch."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hectogpt.grade.computation import Change, Computation, Method, mistake
from hectogpt.grade.mistakes_layers import NORM_MISTAKES, ends


def positioned(index: Change) -> Change:
    return lambda self, ids: self.w["position_embeddings.weight"][index(self, ids)].expand(*ids.shape, -1)


def sinusoids(self: Computation, ids: Tensor) -> Tensor:
    d = self.size.d_model
    angle = torch.arange(ids.shape[1])[:, None] * torch.exp(torch.arange(0, d, 2) * (-math.log(10000.0) / d))
    table = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
    return table.to(self.w["lm_head.weight"].dtype).expand(*ids.shape, -1)


def through(layers: Callable[[int], list[int]]) -> Callable[[Computation], list[int]]:
    return lambda self: layers(self.size.n_layers)


def final(method: str, change: Method) -> Change:
    """The final norm alone with a mistake in a norm."""

    def norm(self: Computation, x: Tensor) -> Tensor:
        return type("Final", (Computation,), {method: change})(self.w, self.size).norm("final_layer_norm", x)

    return norm


P, T, B = "the position embeddings", "the token embeddings", "the loop over the blocks"
FORWARD = [
    mistake("no position embeddings", P, "The position embeddings are not added.", positions=lambda s, ids: torch.zeros(())),
    mistake("positions from 1", P, "Positions are counted from 1.", positions=positioned(lambda s, ids: torch.arange(1, ids.shape[1] + 1))),
    mistake("positions from 1, modulo the context", P, "Positions are counted from 1, and the last one is 0 again.", positions=positioned(lambda s, ids: torch.arange(1, ids.shape[1] + 1) % s.size.context_length)),
    mistake("positions from 1, the last one twice", P, "Positions are counted from 1, up to the last one of the table.", positions=positioned(lambda s, ids: torch.arange(1, ids.shape[1] + 1).clamp(max=s.size.context_length - 1))),
    mistake("positions backwards", P, "Positions run backwards, from the last to the first.", positions=positioned(lambda s, ids: torch.arange(ids.shape[1]).flip(0))),
    mistake("positions from the end of the context", P, "Positions are counted from the end of the context.", positions=positioned(lambda s, ids: torch.arange(s.size.context_length - ids.shape[1], s.size.context_length))),
    mistake("positions from the batch axis", P, "Positions are counted along the batch: all tokens of a row have the same one.", positions=positioned(lambda s, ids: torch.arange(ids.shape[0])[:, None])),
    mistake("one position for all", P, "All tokens have position 0.", positions=positioned(lambda s, ids: torch.zeros(1, dtype=torch.long))),
    mistake("the last position for all", P, "All tokens have the last position.", positions=positioned(lambda s, ids: torch.tensor([ids.shape[1] - 1]))),
    mistake("position of the length for all", P, "All tokens have the number of positions as their position.", positions=positioned(lambda s, ids: torch.tensor([ids.shape[1]]))),
    mistake("token ids as positions", P, "The position table is asked for the token ids.", positions=positioned(lambda s, ids: ids)),
    mistake("whole position table", P, "The whole position table is added, whatever the length of the input.", positions=lambda s, ids: s.w["position_embeddings.weight"].expand(ids.shape[0], -1, -1)),
    mistake("positions multiplied", P, "The position embeddings are multiplied with the tokens instead of added.", embed=lambda s, ids: s.tokens(ids) * s.positions(ids)),
    mistake("positions subtracted", P, "The position embeddings are subtracted.", embed=lambda s, ids: s.tokens(ids) - s.positions(ids)),
    mistake("positions added twice", P, "The position embeddings are added twice.", embed=lambda s, ids: s.tokens(ids) + 2 * s.positions(ids)),
    mistake("sinusoids for positions", P, "Sinusoids stand where the learned position embeddings belong.", positions=sinusoids),
    mistake("no token embeddings", T, "The tokens are never looked up: only positions go into the blocks.", embed=lambda s, ids: s.positions(ids)),
    mistake("token embeddings from the head", T, "The tokens are looked up in the head's matrix.", tokens=lambda s, ids: s.w["lm_head.weight"][ids]),
    mistake("token embeddings times the root of d_model", T, "The token embeddings are multiplied by the root of d_model, as in the first transformer; GPT-2 does not.", tokens=lambda s, ids: s.w["embeddings.weight"][ids] * s.size.d_model**0.5),
    mistake("first token everywhere", T, "Every position looks up the row's first token.", tokens=lambda s, ids: s.w["embeddings.weight"][ids[:, :1].expand_as(ids)]),
    mistake("first row for all", T, "Every row of the batch is computed from the first.", tokens=lambda s, ids: s.w["embeddings.weight"][ids[:1].expand_as(ids)]),
    mistake("embeddings normalised", T, "The embeddings are normalised before the first block.", embed=lambda s, ids: s.final_norm(s.tokens(ids) + s.positions(ids))),
    mistake("no blocks", B, "The blocks are not applied.", layers=through(lambda n: [])),
    mistake("first block only", B, "Only the first block is applied.", layers=through(lambda n: [0])),
    mistake("last block skipped", B, "The last block is left out.", layers=through(lambda n: list(range(n - 1)))),
    mistake("first block skipped", B, "The first block is left out.", layers=through(lambda n: list(range(1, n)))),
    mistake("first block each time", B, "The first block is applied n times instead of each block once.", layers=through(lambda n: [0] * n)),
    mistake("last block each time", B, "The last block is applied n times instead of each block once; perhaps one block object stands in all places.", layers=through(lambda n: [n - 1] * n)),
    mistake("blocks in reverse", B, "The blocks are applied in reverse order.", layers=through(lambda n: list(range(n))[::-1])),
    mistake("blocks twice", B, "The blocks are applied twice.", layers=through(lambda n: [*range(n), *range(n)])),
    mistake("each block reads the embeddings", B, "Every block reads the embeddings: the result of the one before is thrown away.", backbone=lambda s, x: s.layer(s.layers()[-1], x)),
    mistake("positions added before each block", B, "The position embeddings are added before every block, not once.", layer=lambda s, n, x: Computation.layer(s, n, x + s.w["position_embeddings.weight"][: x.shape[1]] * (n > 0))),
    mistake("last block only", B, "Only the last block is applied.", layers=through(lambda n: [n - 1])),
    mistake("residual around the blocks", B, "The stream is added once more around each block.", layer=lambda s, n, x: x + Computation.layer(s, n, x)),
    mistake("final norm after each block", B, "The final norm is applied after each block.", layer=lambda s, n, x: s.norm("final_layer_norm", Computation.layer(s, n, x))),
    mistake("no final norm", "the final norm", "The final norm is not applied.", final_norm=lambda s, x: x),
    mistake("final norm twice", "the final norm", "The final norm is applied twice.", final_norm=lambda s, x: s.norm("final_layer_norm", s.norm("final_layer_norm", x))),
    mistake("final norm before the blocks only", "the final norm", "The final norm stands before the blocks instead of after them.", embed=lambda s, ids: s.norm("final_layer_norm", s.tokens(ids) + s.positions(ids)), final_norm=lambda s, x: x),
    mistake("final norm after the head", "the final norm", "A softmax or norm stands after the head.", final_norm=lambda s, x: x, head=lambda s, x: F.layer_norm(x @ s.w["lm_head.weight"].T, (s.size.vocab_size,))),
    mistake("final residual of the embeddings", "the final norm", "The embeddings are added once more before the final norm.", forward=lambda s, ids: s.head(s.final_norm(s.backbone(s.embed(ids)) + s.embed(ids)))),
    *(mistake(f"final {name}" if name[0] != "R" else "final RMS norm", "the final norm", what, final_norm=final(method, f)) for name, what, method, f in NORM_MISTAKES if "eps" not in name),  # its input is too large for eps to show
    mistake("head tied to the embeddings", "the head", "The logits are made with the embeddings; lm_head is a matrix of its own here.", head=lambda s, x: x @ s.w["embeddings.weight"].T),
    mistake("no head", "the head", "The head is not applied: vectors of d_model come back, not a score for each token.", head=lambda s, x: x),
    mistake("softmax returned", "the result", "Probabilities come back, not logits.", shown=lambda s, y: y.softmax(-1)),
    mistake("log softmax returned", "the result", "Log-probabilities come back, not logits.", shown=lambda s, y: y.log_softmax(-1)),
    mistake("argmax returned", "the result", "The likeliest tokens come back, not logits.", shown=lambda s, y: y.argmax(-1)),
    mistake("logits of the last position only", "the result", "Only the last position's logits come back.", shown=lambda s, y: y[:, -1]),
    mistake("logits of the last position, axis kept", "the result", "Only the last position's logits come back.", shown=lambda s, y: y[:, -1:]),
    mistake("logits of all but the last position", "the result", "The last position's logits are cut off.", shown=lambda s, y: y[:, :-1]),
    mistake("logits transposed", "the result", "The axes of positions and vocabulary are swapped in the result.", shown=lambda s, y: y.transpose(1, 2)),
    mistake("logits flattened", "the result", "The axes of batch and positions are merged in the result.", shown=lambda s, y: y.flatten(0, 1)),
    mistake("axes of length one dropped", "the result", "Axes of length one are squeezed away.", shown=lambda s, y: y.squeeze()),
    mistake("logits scaled", "the result", "The logits are divided by the root of d_model.", shown=lambda s, y: y * s.size.d_model**-0.5),
]  # fmt: skip
FORWARD += ends(FORWARD)


# --- generate and loss -------------------------------------------------------------------------------------------------


C, R = "the choice of the next token", "the text that comes back"
GENERATE = [
    mistake("row 0's token for every row", C, "Every row gets the token that the first row chose.", choose=lambda s, y: y[:1].argmax(-1, keepdim=True).expand(y.shape[0], 1)),
    mistake("one token for the whole batch", C, "One maximum is taken over the whole batch.", choose=lambda s, y: (y.flatten().argmax() % y.shape[-1]).expand(y.shape[0], 1)),
    mistake("the flat index as token", C, "The maximum is taken over the flattened logits, and its flat index is used as a token.", choose=lambda s, y: y.flatten().argmax().expand(y.shape[0], 1)),
    mistake("logits of the first position", C, "The logits of the first position choose the token.", last=lambda s, y: y[:, 0]),
    mistake("logits of the last but one position", C, "The logits of the last but one position choose the token.", last=lambda s, y: y[:, -2]),
    mistake("second-last position", C, "The logits of the second-last position choose the token, wherever there are two.", last=lambda s, y: y[:, -2 if y.shape[1] > 1 else -1]),
    mistake("logits averaged over positions", C, "The logits of all positions are averaged before the choice.", last=lambda s, y: y.mean(1)),
    mistake("logits summed over the batch", C, "The logits of all rows are mixed before the choice.", last=lambda s, y: y[:, -1].mean(0, keepdim=True).expand(y.shape[0], -1)),
    mistake("the least likely token", C, "The least likely token is chosen.", choose=lambda s, y: y.argmin(-1, keepdim=True)),
    mistake("the second likeliest token", C, "The second likeliest token is chosen.", choose=lambda s, y: y.topk(2).indices[:, 1:]),
    mistake("argmax over the batch", C, "The maximum is taken over the batch axis: row numbers are used as tokens.", choose=lambda s, y: y.argmax(0)[: y.shape[0], None]),
    mistake("argmax over positions", C, "The maximum is taken over the positions, not over the vocabulary.", last=lambda s, y: y, choose=lambda s, y: y.argmax(1)[:, -1:]),
    mistake("logits for tokens", C, "The value of the highest logit is appended instead of its token.", choose=lambda s, y: y.max(-1, keepdim=True).values.long()),
    mistake("context does not grow", "what the model is given at each step", "The model is given the prompt alone at each step: the same token comes again and again.", context=lambda s, text, ids, n: s.window(ids)),
    mistake("only the last token as context", "what the model is given at each step", "Each step gives the model the last token alone.", window=lambda s, ids: ids[:, -1:]),
    mistake("prompt at first, then the last token alone", "what the model is given at each step", "After the first step the model is given the new token alone.", context=lambda s, text, ids, n: s.window(ids) if text is ids else text[:, -1:]),
    mistake("last token missing in the context", "what the model is given at each step", "The model is given the text without its last token.", window=lambda s, ids: ids[:, :-1] if ids.shape[1] > 1 else ids),
    mistake("first token lost from the context", "what the model is given at each step", "The first token is cut from the context at each step.", window=lambda s, ids: ids[:, 1:] if ids.shape[1] > 1 else ids),
    mistake("window of the new length", "what the model is given at each step", "The model is given as many tokens as the prompt has, whatever has been added.", context=lambda s, text, ids, n: text[:, -ids.shape[1] :]),
    *(mistake(f"only the last {k} tokens as context", "what the model is given at each step", f"The model is given the last {k} tokens only.", window=lambda s, ids, k=k: ids[:, -k:]) for k in (2, 3, 4, 5, 6)),
    *(mistake(f"context shorter by {k}", "what the model is given at each step", f"The model is given {k} tokens less than the context holds.", window=lambda s, ids, k=k: ids[:, -(s.size.context_length - k):]) for k in (3,)),
    mistake("window from the beginning of the text", "what the model is given at each step", "The model is given the beginning of the text, not its end.", window=lambda s, ids: ids[:, : max(1, s.size.context_length // 2)]),
    mistake("text twice", R, "The text comes back twice.", result=lambda s, t, p: torch.cat([t, t], 1)),
    mistake("logits returned", R, "The last logits come back, not the text.", result=lambda s, t, p: s.forward(s.window(t[:, :-1]))),
    mistake("window of num_new_tokens", "what the model is given at each step", "The model is given the last num_new_tokens tokens only.", context=lambda s, text, ids, n: text[:, -n:]),
    mistake("a token dropped for each one added", R, "For each new token the first of the text is dropped.", append=lambda s, ids, t: torch.cat([ids[:, 1:], t], 1)),
    mistake("first row for all rows", "what the model is given at each step", "The model is given the first row for every row.", window=lambda s, ids: ids[:1, -s.size.context_length :].expand(ids.shape[0], -1)),
    mistake("all tokens from one pass", "what the model is given at each step", "All new tokens are read from one pass over the prompt.", result=lambda s, t, p: torch.cat([p, s.forward(s.window(p)).argmax(-1)[:, p.shape[1] - t.shape[1] :]], 1)),
    mistake("only new tokens returned", R, "Only the new tokens come back; the prompt has to come first.", result=lambda s, t, p: t[:, p.shape[1] :]),
    mistake("only the last token returned", R, "Only the last token comes back.", result=lambda s, t, p: t[:, -1:]),
    mistake("prompt twice", R, "The prompt comes back twice.", result=lambda s, t, p: torch.cat([p, t], 1)),
    mistake("only the prompt returned", R, "The text comes back as it was given.", result=lambda s, t, p: p),
    mistake("only the first row returned", R, "Only the first row comes back.", result=lambda s, t, p: t[:1]),
    mistake("batch axis dropped", R, "The first row comes back without the batch axis.", result=lambda s, t, p: t[0]),
    mistake("axes of length one dropped", R, "Axes of length one are squeezed away.", result=lambda s, t, p: t.squeeze()),
    mistake("floats returned", R, "Tokens come back as floating-point numbers.", result=lambda s, t, p: t.double()),
    mistake("prompt's first token dropped", R, "The first token of the prompt is lost.", result=lambda s, t, p: t[:, 1:]),
    mistake("returned text cropped", R, "The returned text is cut to the context, so that the beginning of the prompt is lost; only what the model is given may be cut.", append=lambda s, ids, t: torch.cat([s.window(ids), t], 1)),
    mistake("new tokens in front", R, "New tokens are put in front of the text.", append=lambda s, ids, t: torch.cat([t, ids], 1)),
    mistake("last token overwritten", R, "The new token replaces the last one of the text.", append=lambda s, ids, t: torch.cat([ids[:, :-1], t], 1)),
    mistake("each token appended twice", R, "Each new token is appended twice.", append=lambda s, ids, t: torch.cat([ids, t, t], 1)),
    mistake("num_new_tokens taken as the total length", "the number of new tokens", "num_new_tokens is taken as the length of the whole text.", count=lambda s, ids, n: n - ids.shape[1]),
    mistake("one token too few", "the number of new tokens", "One token too few is made.", count=lambda s, ids, n: n - 1),
    mistake("one token too many", "the number of new tokens", "One token too many is made.", count=lambda s, ids, n: n + 1),
    mistake("one token only", "the number of new tokens", "One token is made, whatever num_new_tokens says.", count=lambda s, ids, n: 1),
    mistake("filled up to the context", "the number of new tokens", "The text is continued up to the context's length.", count=lambda s, ids, n: s.size.context_length - ids.shape[1]),
]  # fmt: skip


def against(logits: Callable[[Tensor], Tensor], targets: Callable[[Tensor], Tensor]) -> Method:
    return lambda self, y, ids: (logits(y), targets(ids))


def scrambled(self: Computation, logits: Tensor, targets: Tensor) -> Tensor:
    """(batch, n, vocab) viewed as (batch, vocab, n), and that as rows: classes and positions are mixed up."""
    batch, n, vocab = logits.shape
    return F.cross_entropy(logits.reshape(batch, vocab, n), targets, reduction="none")


S, L = "which logits are held against which tokens", "the mean"
LOSS = [
    mistake("no shift", S, "There is no shift: each position is held against its own token, which it has seen.", align=against(lambda y: y, lambda t: t)),
    mistake("no shift, last position left out", S, "There is no shift: each position is held against its own token, which it has seen.", align=against(lambda y: y[:, :-1], lambda t: t[:, :-1])),
    mistake("no shift, first position left out", S, "There is no shift: each position is held against its own token, which it has seen.", align=against(lambda y: y[:, 1:], lambda t: t[:, 1:])),
    mistake("shift twice", S, "The shift is made twice: each position is held against the token after the next.", align=against(lambda y: y[:, :-2], lambda t: t[:, 2:])),
    mistake("shift the wrong way", S, "The shift goes the wrong way: each position is held against the token before it.", align=against(lambda y: y[:, 1:], lambda t: t[:, :-1])),
    mistake("targets rolled", S, "The targets are rolled: the last position is held against the row's first token.", align=against(lambda y: y, lambda t: t.roll(-1, 1))),
    mistake("targets padded with 0", S, "The last position is held against a padding of 0.", align=against(lambda y: y, lambda t: F.pad(t[:, 1:], (0, 1)))),
    mistake("first prediction left out", S, "The first prediction is left out.", align=against(lambda y: y[:, 1:-1], lambda t: t[:, 2:])),
    mistake("last prediction left out", S, "The last prediction is left out.", align=against(lambda y: y[:, :-2], lambda t: t[:, 1:-1])),
    mistake("last prediction only", S, "Only the last prediction counts.", align=against(lambda y: y[:, -2:-1], lambda t: t[:, -1:])),
    mistake("first row only", S, "Only the first row of the batch counts.", rows=lambda s, ids: ids[:1]),
    mistake("shift along the batch", S, "The shift is made along the batch, not along the positions.", align=against(lambda y: y[:-1], lambda t: t[1:])),
    mistake("shift after flattening", S, "The shift is made after the rows were joined: the end of a row predicts the next row's start.", align=against(lambda y: y.flatten(0, 1)[None, :-1], lambda t: t.flatten()[None, 1:])),
    mistake("shift the wrong way, from shorter rows", S, "The shift goes the wrong way: the model is given all but the first token, and held against all but the last.", seen=lambda s, ids: ids[:, 1:], align=against(lambda y: y, lambda t: t[:, :-1])),
    mistake("no shift, first token left out", S, "There is no shift: the model is given the very tokens that it is held against.", seen=lambda s, ids: ids[:, 1:], align=against(lambda y: y, lambda t: t[:, 1:])),
    mistake("last row only", S, "Only the last row of the batch counts.", rows=lambda s, ids: ids[-1:]),
    mistake("sigmoid before cross entropy", "the cross entropy", "Cross entropy is given a sigmoid of the logits; it wants the logits.", surprise=lambda s, y, t: Computation.surprise(s, y.sigmoid(), t)),
    mistake("accuracy", "the cross entropy", "It is the share of right guesses, not a cross entropy.", surprise=lambda s, y, t: (y.argmax(-1) == t).to(y.dtype)),
    mistake("binary cross entropy", "the cross entropy", "It is a binary cross entropy for each token of the vocabulary.", surprise=lambda s, y, t: F.binary_cross_entropy_with_logits(y, F.one_hot(t, y.shape[-1]).to(y.dtype), reduction="none").mean(-1)),
    mistake("softmax before cross entropy", "the cross entropy", "Cross entropy is given probabilities; it makes its own from logits.", surprise=lambda s, y, t: Computation.surprise(s, y.softmax(-1), t)),
    mistake("sign", "the cross entropy", "The sign is wrong: this is the log-likelihood.", finish=lambda s, x, t: -x),
    mistake("bits for nats", "the cross entropy", "The logarithm has base 2.", finish=lambda s, x, t: x / math.log(2)),
    mistake("probability for its logarithm", "the cross entropy", "The logarithm is missing: probabilities are averaged.", surprise=lambda s, y, t: -(-Computation.surprise(s, y, t)).exp()),
    mistake("raw logits of the targets", "the cross entropy", "The softmax is missing: raw logits of the targets are averaged.", surprise=lambda s, y, t: -y.gather(-1, t[..., None])[..., 0]),
    mistake("squared error", "the cross entropy", "It is a squared error, not a cross entropy.", surprise=lambda s, y, t: (y - F.one_hot(t, y.shape[-1]).to(y.dtype)).square().mean(-1)),
    mistake("softmax over positions", "the cross entropy", "The softmax runs over the positions, not over the vocabulary.", surprise=lambda s, y, t: -y.log_softmax(1).gather(-1, t[..., None])[..., 0]),
    mistake("vocabulary and positions mixed up", "the cross entropy", "The logits are reshaped where they have to be transposed: vocabulary and positions are mixed up.", surprise=scrambled),
    mistake("targets transposed", "the cross entropy", "The targets are flattened in another order than the logits.", surprise=lambda s, y, t: Computation.surprise(s, y, t.T.reshape(t.shape))),
    mistake("sum for mean", L, "The losses are summed, not averaged.", reduce=lambda s, x, t: x.sum()),
    mistake("sum over positions", L, "The losses are summed over the positions and averaged over the rows.", reduce=lambda s, x, t: x.sum() / x.shape[0]),
    mistake("sum over rows", L, "The losses are summed over the rows and averaged over the positions.", reduce=lambda s, x, t: x.sum() / x.shape[1]),
    mistake("divided by all positions", L, "The sum is divided by all positions, though the last makes no prediction.", reduce=lambda s, x, t: x.sum() / (x.shape[0] * (x.shape[1] + 1))),
    mistake("divided by the batch size once more", L, "The mean is divided by the batch size once more.", finish=lambda s, x, t: x / t.shape[0]),
    mistake("divided by the length once more", L, "The mean is divided by the number of positions once more.", finish=lambda s, x, t: x / (t.shape[1] + 1)),
    mistake("divided by the number of predictions once more", L, "The mean is divided by the number of predictions once more.", finish=lambda s, x, t: x / t.shape[1]),
    mistake("token 0 ignored", L, "Token 0 is left out of the mean, as if it were padding.", reduce=lambda s, x, t: x[t != 0].mean()),
    mistake("token 0 counts nothing", L, "The losses of token 0 are set to 0, as if it were padding.", reduce=lambda s, x, t: (x * (t != 0)).mean()),
    mistake("a loss per position", L, "The losses are not averaged: a number per position comes back.", reduce=lambda s, x, t: x),
    mistake("a loss per row", L, "The losses are averaged over positions only: a number per row comes back.", reduce=lambda s, x, t: x.mean(1)),
    mistake("a flat list of losses", L, "The losses are not averaged: a number per prediction comes back.", reduce=lambda s, x, t: x.flatten()),
    mistake("perplexity", L, "The exponential of the loss comes back (the perplexity).", finish=lambda s, x, t: x.exp()),
    mistake("largest loss", L, "The largest loss comes back, not the mean.", reduce=lambda s, x, t: x.max()),
    mistake("median loss", L, "The median comes back, not the mean.", reduce=lambda s, x, t: x.flatten().median()),
]  # fmt: skip
