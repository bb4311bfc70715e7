"""Known mistakes in Transformer.generate and Transformer.get_loss_on_batch."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hectogpt.grade.computation import Computation
from hectogpt.grade.mistake import of


def grow(step: Callable[[Computation, Tensor, Tensor], Tensor]) -> Callable[[Computation, Tensor, int], Tensor]:
    """Generation whose context is made by `step` from prompt and text so far."""

    def generate(self: Computation, ids: Tensor, n: int) -> Tensor:
        text = ids
        for _ in range(self.count(ids, n)):
            text = self.append(text, self.choose(self.last(self.forward(step(self, ids, text)))))
        return self.typed(self.result(text, ids))

    return generate


def all_at_once(self: Computation, ids: Tensor, n: int) -> Tensor:
    """The last n positions' choices of one pass over the prompt."""
    text = torch.cat([ids, self.forward(self.window(ids)).argmax(-1)[:, -n:]], 1)
    return self.typed(self.result(text, ids))


def forgetful(self: Computation, ids: Tensor, n: int) -> Tensor:
    """The returned text itself is cut to the context."""
    text = ids
    for _ in range(self.count(ids, n)):
        text = text[:, -self.size.context_length :]
        text = self.append(text, self.choose(self.last(self.forward(text))))
    return self.typed(self.result(text, ids))


def last_n(self: Computation, ids: Tensor, n: int) -> Tensor:
    """The model is given as many tokens as are to be made."""
    text = ids
    for _ in range(self.count(ids, n)):
        text = self.append(text, self.choose(self.last(self.forward(text[:, -n:]))))
    return self.typed(self.result(text, ids))


def last_logits(self: Computation, ids: Tensor, n: int) -> Tensor:
    text, logits = ids, ids
    for _ in range(self.count(ids, n)):
        logits = self.forward(self.window(text))
        text = self.append(text, self.choose(self.last(logits)))
    return logits


generate, loss = of("generate"), of("loss")
C, R = "the choice of the next token", "the text that comes back"
GENERATE = [
    generate("row 0's token for every row", C, "Every row gets the token that the first row chose.", choose=lambda s, y: y[:1].argmax(-1, keepdim=True).expand(y.shape[0], 1)),
    generate("one token for the whole batch", C, "One maximum is taken over the whole batch.", choose=lambda s, y: (y.flatten().argmax() % y.shape[-1]).expand(y.shape[0], 1)),
    generate("the flat index as token", C, "The maximum is taken over the flattened logits, and its flat index is used as a token.", choose=lambda s, y: y.flatten().argmax().expand(y.shape[0], 1)),
    generate("logits of the first position", C, "The logits of the first position choose the token.", last=lambda s, y: y[:, 0]),
    generate("logits of the last but one position", C, "The logits of the last but one position choose the token.", last=lambda s, y: y[:, -2]),
    generate("second-last position", C, "The logits of the second-last position choose the token, wherever there are two.", last=lambda s, y: y[:, -2 if y.shape[1] > 1 else -1]),
    generate("logits averaged over positions", C, "The logits of all positions are averaged before the choice.", last=lambda s, y: y.mean(1)),
    generate("logits summed over the batch", C, "The logits of all rows are mixed before the choice.", last=lambda s, y: y[:, -1].mean(0, keepdim=True).expand(y.shape[0], -1)),
    generate("the least likely token", C, "The least likely token is chosen.", choose=lambda s, y: y.argmin(-1, keepdim=True)),
    generate("the second likeliest token", C, "The second likeliest token is chosen.", choose=lambda s, y: y.topk(2).indices[:, 1:]),
    generate("argmax over the batch", C, "The maximum is taken over the batch axis: row numbers are used as tokens.", choose=lambda s, y: y.argmax(0)[: y.shape[0], None]),
    generate("argmax over positions", C, "The maximum is taken over the positions, not over the vocabulary.", last=lambda s, y: y, choose=lambda s, y: y.argmax(1)[:, -1:]),
    generate("logits for tokens", C, "The value of the highest logit is appended instead of its token.", choose=lambda s, y: y.max(-1, keepdim=True).values.long()),
    generate("context does not grow", "what the model is given at each step", "The model is given the prompt alone at each step: the same token comes again and again.", generate=grow(lambda s, ids, text: s.window(ids))),
    generate("only the last token as context", "what the model is given at each step", "Each step gives the model the last token alone.", window=lambda s, ids: ids[:, -1:]),
    generate("prompt at first, then the last token alone", "what the model is given at each step", "After the first step the model is given the new token alone.", generate=grow(lambda s, ids, text: s.window(ids) if text is ids else text[:, -1:])),
    generate("last token missing in the context", "what the model is given at each step", "The model is given the text without its last token.", window=lambda s, ids: ids[:, :-1] if ids.shape[1] > 1 else ids),
    generate("first token lost from the context", "what the model is given at each step", "The first token is cut from the context at each step.", window=lambda s, ids: ids[:, 1:] if ids.shape[1] > 1 else ids),
    generate("window of the new length", "what the model is given at each step", "The model is given as many tokens as the prompt has, whatever has been added.", generate=grow(lambda s, ids, text: text[:, -ids.shape[1] :])),
    *(generate(f"only the last {k} tokens as context", "what the model is given at each step", f"The model is given the last {k} tokens only.", window=lambda s, ids, k=k: ids[:, -k:]) for k in (2, 3, 4, 5, 6)),
    *(generate(f"context shorter by {k}", "what the model is given at each step", f"The model is given {k} tokens less than the context holds.", window=lambda s, ids, k=k: ids[:, -(s.size.context_length - k):]) for k in (3,)),
    generate("window from the beginning of the text", "what the model is given at each step", "The model is given the beginning of the text, not its end.", window=lambda s, ids: ids[:, : max(1, s.size.context_length // 2)]),
    generate("text twice", R, "The text comes back twice.", result=lambda s, t, p: torch.cat([t, t], 1)),
    generate("logits returned", R, "The last logits come back, not the text.", generate=last_logits),
    generate("window of num_new_tokens", "what the model is given at each step", "The model is given the last num_new_tokens tokens only.", generate=last_n),
    generate("a token dropped for each one added", R, "For each new token the first of the text is dropped.", append=lambda s, ids, t: torch.cat([ids[:, 1:], t], 1)),
    generate("first row for all rows", "what the model is given at each step", "The model is given the first row for every row.", window=lambda s, ids: ids[:1, -s.size.context_length :].expand(ids.shape[0], -1)),
    generate("all tokens from one pass", "what the model is given at each step", "All new tokens are read from one pass over the prompt.", generate=all_at_once),
    generate("only new tokens returned", R, "Only the new tokens come back; the prompt has to come first.", result=lambda s, t, p: t[:, p.shape[1] :]),
    generate("only the last token returned", R, "Only the last token comes back.", result=lambda s, t, p: t[:, -1:]),
    generate("prompt twice", R, "The prompt comes back twice.", result=lambda s, t, p: torch.cat([p, t], 1)),
    generate("only the prompt returned", R, "The text comes back as it was given.", result=lambda s, t, p: p),
    generate("only the first row returned", R, "Only the first row comes back.", result=lambda s, t, p: t[:1]),
    generate("batch axis dropped", R, "The first row comes back without the batch axis.", result=lambda s, t, p: t[0]),
    generate("axes of length one dropped", R, "Axes of length one are squeezed away.", result=lambda s, t, p: t.squeeze()),
    generate("floats returned", R, "Tokens come back as floating-point numbers.", typed=lambda s, t: t.double()),
    generate("prompt's first token dropped", R, "The first token of the prompt is lost.", result=lambda s, t, p: t[:, 1:]),
    generate("returned text cropped", R, "The returned text is cut to the context, so that the beginning of the prompt is lost; only what the model is given may be cut.", generate=forgetful),
    generate("new tokens in front", R, "New tokens are put in front of the text.", append=lambda s, ids, t: torch.cat([t, ids], 1)),
    generate("last token overwritten", R, "The new token replaces the last one of the text.", append=lambda s, ids, t: torch.cat([ids[:, :-1], t], 1)),
    generate("each token appended twice", R, "Each new token is appended twice.", append=lambda s, ids, t: torch.cat([ids, t, t], 1)),
    generate("num_new_tokens taken as the total length", "the number of new tokens", "num_new_tokens is taken as the length of the whole text.", count=lambda s, ids, n: n - ids.shape[1]),
    generate("one token too few", "the number of new tokens", "One token too few is made.", count=lambda s, ids, n: n - 1),
    generate("one token too many", "the number of new tokens", "One token too many is made.", count=lambda s, ids, n: n + 1),
    generate("one token only", "the number of new tokens", "One token is made, whatever num_new_tokens says.", count=lambda s, ids, n: 1),
    generate("filled up to the context", "the number of new tokens", "The text is continued up to the context's length.", count=lambda s, ids, n: s.size.context_length - ids.shape[1]),
]  # fmt: skip


def against(
    logits: Callable[[Tensor], Tensor], targets: Callable[[Tensor], Tensor]
) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda self, y, ids: (logits(y), targets(ids))


def given_other(inputs: slice, targets: slice) -> Callable[[Computation, Tensor], Tensor]:
    """The model is given one slice of the row, and held against another."""

    def loss(self: Computation, ids: Tensor) -> Tensor:
        ids = self.rows(ids)
        wanted = ids[:, targets]
        return self.finish(self.reduce(self.surprise(self.forward(ids[:, inputs]), wanted), wanted), wanted)

    return loss


def cross(logits: Tensor, targets: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def without_zeros(self: Computation, surprise: Tensor, targets: Tensor) -> Tensor:
    return surprise[targets != 0].mean()


def scrambled(self: Computation, logits: Tensor, targets: Tensor) -> Tensor:
    """(batch, n, vocab) viewed as (batch, vocab, n), and that as rows: classes and positions are mixed up."""
    batch, n, vocab = logits.shape
    return F.cross_entropy(logits.reshape(batch, vocab, n), targets, reduction="none")


def transposed_targets(self: Computation, logits: Tensor, targets: Tensor) -> Tensor:
    return cross(logits, targets.T.reshape(targets.shape))


S, L = "which logits are held against which tokens", "the mean"
LOSS = [
    loss("no shift", S, "There is no shift: each position is held against its own token, which it has seen.", align=against(lambda y: y, lambda t: t)),
    loss("no shift, last position left out", S, "There is no shift: each position is held against its own token, which it has seen.", align=against(lambda y: y[:, :-1], lambda t: t[:, :-1])),
    loss("no shift, first position left out", S, "There is no shift: each position is held against its own token, which it has seen.", align=against(lambda y: y[:, 1:], lambda t: t[:, 1:])),
    loss("shift twice", S, "The shift is made twice: each position is held against the token after the next.", align=against(lambda y: y[:, :-2], lambda t: t[:, 2:])),
    loss("shift the wrong way", S, "The shift goes the wrong way: each position is held against the token before it.", align=against(lambda y: y[:, 1:], lambda t: t[:, :-1])),
    loss("targets rolled", S, "The targets are rolled: the last position is held against the row's first token.", align=against(lambda y: y, lambda t: t.roll(-1, 1))),
    loss("targets padded with 0", S, "The last position is held against a padding of 0.", align=against(lambda y: y, lambda t: F.pad(t[:, 1:], (0, 1)))),
    loss("first prediction left out", S, "The first prediction is left out.", align=against(lambda y: y[:, 1:-1], lambda t: t[:, 2:])),
    loss("last prediction left out", S, "The last prediction is left out.", align=against(lambda y: y[:, :-2], lambda t: t[:, 1:-1])),
    loss("last prediction only", S, "Only the last prediction counts.", align=against(lambda y: y[:, -2:-1], lambda t: t[:, -1:])),
    loss("first row only", S, "Only the first row of the batch counts.", rows=lambda s, ids: ids[:1]),
    loss("shift along the batch", S, "The shift is made along the batch, not along the positions.", align=against(lambda y: y[:-1], lambda t: t[1:])),
    loss("shift after flattening", S, "The shift is made after the rows were joined: the end of a row predicts the next row's start.", align=against(lambda y: y.flatten(0, 1)[None, :-1], lambda t: t.flatten()[None, 1:])),
    loss("shift the wrong way, from shorter rows", S, "The shift goes the wrong way: the model is given all but the first token, and held against all but the last.", loss=given_other(slice(1, None), slice(None, -1))),
    loss("no shift, first token left out", S, "There is no shift: the model is given the very tokens that it is held against.", loss=given_other(slice(1, None), slice(1, None))),
    loss("last row only", S, "Only the last row of the batch counts.", rows=lambda s, ids: ids[-1:]),
    loss("sigmoid before cross entropy", "the cross entropy", "Cross entropy is given a sigmoid of the logits; it wants the logits.", surprise=lambda s, y, t: cross(y.sigmoid(), t)),
    loss("accuracy", "the cross entropy", "It is the share of right guesses, not a cross entropy.", surprise=lambda s, y, t: (y.argmax(-1) == t).to(y.dtype)),
    loss("binary cross entropy", "the cross entropy", "It is a binary cross entropy for each token of the vocabulary.", surprise=lambda s, y, t: F.binary_cross_entropy_with_logits(y, F.one_hot(t, y.shape[-1]).to(y.dtype), reduction="none").mean(-1)),
    loss("softmax before cross entropy", "the cross entropy", "Cross entropy is given probabilities; it makes its own from logits.", surprise=lambda s, y, t: cross(y.softmax(-1), t)),
    loss("sign", "the cross entropy", "The sign is wrong: this is the log-likelihood.", finish=lambda s, x, t: -x),
    loss("bits for nats", "the cross entropy", "The logarithm has base 2.", finish=lambda s, x, t: x / math.log(2)),
    loss("probability for its logarithm", "the cross entropy", "The logarithm is missing: probabilities are averaged.", surprise=lambda s, y, t: -(-cross(y, t)).exp()),
    loss("raw logits of the targets", "the cross entropy", "The softmax is missing: raw logits of the targets are averaged.", surprise=lambda s, y, t: -y.gather(-1, t[..., None])[..., 0]),
    loss("squared error", "the cross entropy", "It is a squared error, not a cross entropy.", surprise=lambda s, y, t: (y - F.one_hot(t, y.shape[-1]).to(y.dtype)).square().mean(-1)),
    loss("softmax over positions", "the cross entropy", "The softmax runs over the positions, not over the vocabulary.", surprise=lambda s, y, t: -y.log_softmax(1).gather(-1, t[..., None])[..., 0]),
    loss("vocabulary and positions mixed up", "the cross entropy", "The logits are reshaped where they have to be transposed: vocabulary and positions are mixed up.", surprise=scrambled),
    loss("targets transposed", "the cross entropy", "The targets are flattened in another order than the logits.", surprise=transposed_targets),
    loss("sum for mean", L, "The losses are summed, not averaged.", reduce=lambda s, x, t: x.sum()),
    loss("sum over positions", L, "The losses are summed over the positions and averaged over the rows.", reduce=lambda s, x, t: x.sum() / x.shape[0]),
    loss("sum over rows", L, "The losses are summed over the rows and averaged over the positions.", reduce=lambda s, x, t: x.sum() / x.shape[1]),
    loss("divided by all positions", L, "The sum is divided by all positions, though the last makes no prediction.", reduce=lambda s, x, t: x.sum() / (x.shape[0] * (x.shape[1] + 1))),
    loss("divided by the batch size once more", L, "The mean is divided by the batch size once more.", finish=lambda s, x, t: x / t.shape[0]),
    loss("divided by the length once more", L, "The mean is divided by the number of positions once more.", finish=lambda s, x, t: x / (t.shape[1] + 1)),
    loss("divided by the number of predictions once more", L, "The mean is divided by the number of predictions once more.", finish=lambda s, x, t: x / t.shape[1]),
    loss("token 0 ignored", L, "Token 0 is left out of the mean, as if it were padding.", reduce=without_zeros),
    loss("token 0 counts nothing", L, "The losses of token 0 are set to 0, as if it were padding.", reduce=lambda s, x, t: (x * (t != 0)).mean()),
    loss("a loss per position", L, "The losses are not averaged: a number per position comes back.", reduce=lambda s, x, t: x),
    loss("a loss per row", L, "The losses are averaged over positions only: a number per row comes back.", reduce=lambda s, x, t: x.mean(1)),
    loss("a flat list of losses", L, "The losses are not averaged: a number per prediction comes back.", reduce=lambda s, x, t: x.flatten()),
    loss("perplexity", L, "The exponential of the loss comes back (the perplexity).", finish=lambda s, x, t: x.exp()),
    loss("largest loss", L, "The largest loss comes back, not the mean.", reduce=lambda s, x, t: x.max()),
    loss("median loss", L, "The median comes back, not the mean.", reduce=lambda s, x, t: x.flatten().median()),
]  # fmt: skip
