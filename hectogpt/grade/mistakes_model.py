"""Known mistakes in Transformer: forward, generate and get_loss_on_batch."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hectogpt.grade.computation import Computation
from hectogpt.grade.mistake import Mistake


def positioned(index: Callable[[Computation, Tensor], Tensor]) -> Callable[[Computation, Tensor], Tensor]:
    return lambda self, ids: self.w["position_embeddings.weight"][index(self, ids)].expand(*ids.shape, -1)


def sinusoids(self: Computation, ids: Tensor) -> Tensor:
    d = self.size.d_model
    angle = torch.arange(ids.shape[1])[:, None] * torch.exp(torch.arange(0, d, 2) * (-math.log(10000.0) / d))
    table = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
    return table.to(self.w["lm_head.weight"].dtype).expand(*ids.shape, -1)


def through(layers: Callable[[int], list[int]]) -> Callable[[Computation], list[int]]:
    return lambda self: layers(self.size.n_layers)


def blocks_with_sum(self: Computation, x: Tensor) -> Tensor:
    for layer in self.layers():
        x = x + self.block(f"backbone.{layer}.", x)
    return x


def blocks_normalised(self: Computation, x: Tensor) -> Tensor:
    for layer in self.layers():
        x = self.final_norm(self.block(f"backbone.{layer}.", x))
    return x


def blocks_positioned(self: Computation, x: Tensor) -> Tensor:
    """The positions are added again before each block but the first."""
    seen = self.w["position_embeddings.weight"][: x.shape[1]]
    for number, layer in enumerate(self.layers()):
        x = self.block(f"backbone.{layer}.", x + seen if number else x)
    return x


def blocks_on_input(self: Computation, x: Tensor) -> Tensor:
    """Every block reads the embeddings; the last one's result counts."""
    y = x
    for layer in self.layers():
        y = self.block(f"backbone.{layer}.", x)
    return y


P, T, B = "the position embeddings", "the token embeddings", "the loop over the blocks"
FORWARD = [
    Mistake("no position embeddings", "forward", P, "The position embeddings are not added.", {"positions": lambda s, ids: torch.zeros(())}),
    Mistake("positions from 1", "forward", P, "Positions are counted from 1.",
            {"positions": positioned(lambda s, ids: torch.arange(1, ids.shape[1] + 1))}),
    Mistake("positions backwards", "forward", P, "Positions run backwards, from the last to the first.",
            {"positions": positioned(lambda s, ids: torch.arange(ids.shape[1]).flip(0))}),
    Mistake("positions from the end of the context", "forward", P, "Positions are counted from the end of the context.",
            {"positions": positioned(lambda s, ids: torch.arange(s.size.context_length - ids.shape[1], s.size.context_length))}),
    Mistake("positions from the batch axis", "forward", P, "Positions are counted along the batch: all tokens of a row have the same one.",
            {"positions": positioned(lambda s, ids: torch.arange(ids.shape[0])[:, None])}),
    Mistake("one position for all", "forward", P, "All tokens have position 0.", {"positions": positioned(lambda s, ids: torch.zeros(1, dtype=torch.long))}),
    Mistake("the last position for all", "forward", P, "All tokens have the last position.",
            {"positions": positioned(lambda s, ids: torch.tensor([ids.shape[1] - 1]))}),
    Mistake("position of the length for all", "forward", P, "All tokens have the number of positions as their position.",
            {"positions": positioned(lambda s, ids: torch.tensor([ids.shape[1]]))}),
    Mistake("token ids as positions", "forward", P, "The position table is asked for the token ids.", {"positions": positioned(lambda s, ids: ids)}),
    Mistake("whole position table", "forward", P, "The whole position table is added, whatever the length of the input.",
            {"positions": lambda s, ids: s.w["position_embeddings.weight"].expand(ids.shape[0], -1, -1)}),
    Mistake("positions multiplied", "forward", P, "The position embeddings are multiplied with the tokens instead of added.",
            {"embed": lambda s, ids: s.tokens(ids) * s.positions(ids)}),
    Mistake("positions subtracted", "forward", P, "The position embeddings are subtracted.", {"embed": lambda s, ids: s.tokens(ids) - s.positions(ids)}),
    Mistake("positions added twice", "forward", P, "The position embeddings are added twice.", {"embed": lambda s, ids: s.tokens(ids) + 2 * s.positions(ids)}),
    Mistake("sinusoids for positions", "forward", P, "Sinusoids stand where the learned position embeddings belong.", {"positions": sinusoids}),
    Mistake("no token embeddings", "forward", T, "The tokens are never looked up: only positions go into the blocks.",
            {"embed": lambda s, ids: s.positions(ids)}),
    Mistake("token embeddings from the head", "forward", T, "The tokens are looked up in the head's matrix.", {"tokens": lambda s, ids: s.w["lm_head.weight"][ids]}),
    Mistake("token embeddings times the root of d_model", "forward", T,
            "The token embeddings are multiplied by the root of d_model, as in the first transformer; GPT-2 does not.",
            {"tokens": lambda s, ids: s.w["embeddings.weight"][ids] * s.size.d_model**0.5}),
    Mistake("first token everywhere", "forward", T, "Every position looks up the row's first token.",
            {"tokens": lambda s, ids: s.w["embeddings.weight"][ids[:, :1].expand_as(ids)]}),
    Mistake("first row for all", "forward", T, "Every row of the batch is computed from the first.", {"tokens": lambda s, ids: s.w["embeddings.weight"][ids[:1].expand_as(ids)]}),
    Mistake("embeddings normalised", "forward", T, "The embeddings are normalised before the first block.",
            {"embed": lambda s, ids: s.final_norm(s.tokens(ids) + s.positions(ids))}),
    Mistake("no blocks", "forward", B, "The blocks are not applied.", {"layers": through(lambda n: [])}),
    Mistake("first block only", "forward", B, "Only the first block is applied.", {"layers": through(lambda n: [0])}),
    Mistake("last block skipped", "forward", B, "The last block is left out.", {"layers": through(lambda n: list(range(n - 1)))}),
    Mistake("first block skipped", "forward", B, "The first block is left out.", {"layers": through(lambda n: list(range(1, n)))}),
    Mistake("first block each time", "forward", B, "The first block is applied n times instead of each block once.", {"layers": through(lambda n: [0] * n)}),
    Mistake("last block each time", "forward", B, "The last block is applied n times instead of each block once; perhaps one block object stands in all places.", {"layers": through(lambda n: [n - 1] * n)}),
    Mistake("blocks in reverse", "forward", B, "The blocks are applied in reverse order.", {"layers": through(lambda n: list(range(n))[::-1])}),
    Mistake("blocks twice", "forward", B, "The blocks are applied twice.", {"layers": through(lambda n: [*range(n), *range(n)])}),
    Mistake("each block reads the embeddings", "forward", B, "Every block reads the embeddings: the result of the one before is thrown away.",
            {"backbone": blocks_on_input}),
    Mistake("positions added before each block", "forward", B, "The position embeddings are added before every block, not once.", {"backbone": blocks_positioned}),
    Mistake("last block only", "forward", B, "Only the last block is applied.", {"layers": through(lambda n: [n - 1])}),
    Mistake("residual around the blocks", "forward", B, "The stream is added once more around each block.", {"backbone": blocks_with_sum}),
    Mistake("final norm after each block", "forward", B, "The final norm is applied after each block.", {"backbone": blocks_normalised, "final_norm": lambda s, x: s.norm("final_layer_norm", x)}),
    Mistake("no final norm", "forward", "the final norm", "The final norm is not applied.", {"final_norm": lambda s, x: x}),
    Mistake("final norm twice", "forward", "the final norm", "The final norm is applied twice.",
            {"final_norm": lambda s, x: s.norm("final_layer_norm", s.norm("final_layer_norm", x))}),
    Mistake("final norm before the blocks only", "forward", "the final norm", "The final norm stands before the blocks instead of after them.",
            {"embed": lambda s, ids: s.norm("final_layer_norm", s.tokens(ids) + s.positions(ids)), "final_norm": lambda s, x: x}),
    Mistake("final norm after the head", "forward", "the final norm", "A softmax or norm stands after the head.",
            {"final_norm": lambda s, x: x, "head": lambda s, x: F.layer_norm(x @ s.w["lm_head.weight"].T, (s.size.vocab_size,))}),
    Mistake("final residual of the embeddings", "forward", "the final norm", "The embeddings are added once more before the final norm.",
            {"forward": lambda s, ids: s.head(s.final_norm(s.backbone(s.embed(ids)) + s.embed(ids)))}),
    Mistake("head tied to the embeddings", "forward", "the head", "The logits are made with the embeddings; lm_head is a matrix of its own here.",
            {"head": lambda s, x: x @ s.w["embeddings.weight"].T}),
    Mistake("no head", "forward", "the head", "The head is not applied: vectors of d_model come back, not a score for each token.", {"head": lambda s, x: x}),
    Mistake("softmax returned", "forward", "the result", "Probabilities come back, not logits.", {"shown": lambda s, y: y.softmax(-1)}),
    Mistake("log softmax returned", "forward", "the result", "Log-probabilities come back, not logits.", {"shown": lambda s, y: y.log_softmax(-1)}),
    Mistake("argmax returned", "forward", "the result", "The likeliest tokens come back, not logits.", {"shown": lambda s, y: y.argmax(-1)}),
    Mistake("logits of the last position only", "forward", "the result", "Only the last position's logits come back.", {"shown": lambda s, y: y[:, -1]}),
    Mistake("logits of the last position, axis kept", "forward", "the result", "Only the last position's logits come back.", {"shown": lambda s, y: y[:, -1:]}),
    Mistake("logits of all but the last position", "forward", "the result", "The last position's logits are cut off.", {"shown": lambda s, y: y[:, :-1]}),
    Mistake("logits transposed", "forward", "the result", "The axes of positions and vocabulary are swapped in the result.", {"shown": lambda s, y: y.transpose(1, 2)}),
    Mistake("logits flattened", "forward", "the result", "The axes of batch and positions are merged in the result.", {"shown": lambda s, y: y.flatten(0, 1)}),
    Mistake("axes of length one dropped", "forward", "the result", "Axes of length one are squeezed away.", {"shown": lambda s, y: y.squeeze()}),
    Mistake("logits scaled", "forward", "the result", "The logits are divided by the root of d_model.", {"shown": lambda s, y: y * s.size.d_model**-0.5}),
]  # fmt: skip


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


C, R = "the choice of the next token", "the text that comes back"
GENERATE = [
    Mistake("row 0's token for every row", "generate", C, "Every row gets the token that the first row chose.",
            {"choose": lambda s, y: y[:1].argmax(-1, keepdim=True).expand(y.shape[0], 1)}),
    Mistake("one token for the whole batch", "generate", C, "One maximum is taken over the whole batch.",
            {"choose": lambda s, y: (y.flatten().argmax() % y.shape[-1]).expand(y.shape[0], 1)}),
    Mistake("the flat index as token", "generate", C, "The maximum is taken over the flattened logits, and its flat index is used as a token.",
            {"choose": lambda s, y: y.flatten().argmax().expand(y.shape[0], 1)}),
    Mistake("logits of the first position", "generate", C, "The logits of the first position choose the token.", {"last": lambda s, y: y[:, 0]}),
    Mistake("logits of the last but one position", "generate", C, "The logits of the last but one position choose the token.",
            {"last": lambda s, y: y[:, -2]}),
    Mistake("logits averaged over positions", "generate", C, "The logits of all positions are averaged before the choice.", {"last": lambda s, y: y.mean(1)}),
    Mistake("logits summed over the batch", "generate", C, "The logits of all rows are mixed before the choice.", {"last": lambda s, y: y[:, -1].mean(0, keepdim=True).expand(y.shape[0], -1)}),
    Mistake("the least likely token", "generate", C, "The least likely token is chosen.", {"choose": lambda s, y: y.argmin(-1, keepdim=True)}),
    Mistake("the second likeliest token", "generate", C, "The second likeliest token is chosen.", {"choose": lambda s, y: y.topk(2).indices[:, 1:]}),
    Mistake("argmax over the batch", "generate", C, "The maximum is taken over the batch axis: row numbers are used as tokens.",
            {"choose": lambda s, y: y.argmax(0)[: y.shape[0], None]}),
    Mistake("argmax over positions", "generate", C, "The maximum is taken over the positions, not over the vocabulary.",
            {"last": lambda s, y: y, "choose": lambda s, y: y.argmax(1)[:, -1:]}),
    Mistake("logits for tokens", "generate", C, "The value of the highest logit is appended instead of its token.",
            {"choose": lambda s, y: y.max(-1, keepdim=True).values.long()}),
    Mistake("context does not grow", "generate", "what the model is given at each step",
            "The model is given the prompt alone at each step: the same token comes again and again.", {"generate": grow(lambda s, ids, text: s.window(ids))}),
    Mistake("only the last token as context", "generate", "what the model is given at each step",
            "Each step gives the model the last token alone.", {"window": lambda s, ids: ids[:, -1:]}),
    Mistake("prompt at first, then the last token alone", "generate", "what the model is given at each step",
            "After the first step the model is given the new token alone.",
            {"generate": grow(lambda s, ids, text: s.window(ids) if text is ids else text[:, -1:])}),
    Mistake("last token missing in the context", "generate", "what the model is given at each step",
            "The model is given the text without its last token.", {"window": lambda s, ids: ids[:, :-1] if ids.shape[1] > 1 else ids}),
    Mistake("first token lost from the context", "generate", "what the model is given at each step",
            "The first token is cut from the context at each step.", {"window": lambda s, ids: ids[:, 1:] if ids.shape[1] > 1 else ids}),
    Mistake("window of the new length", "generate", "what the model is given at each step",
            "The model is given as many tokens as the prompt has, whatever has been added.",
            {"generate": grow(lambda s, ids, text: text[:, -ids.shape[1] :])}),
    Mistake("window of num_new_tokens", "generate", "what the model is given at each step",
            "The model is given the last num_new_tokens tokens only.", {"generate": last_n}),
    Mistake("a token dropped for each one added", "generate", R, "For each new token the first of the text is dropped.",
            {"append": lambda s, ids, t: torch.cat([ids[:, 1:], t], 1)}),
    Mistake("first row for all rows", "generate", "what the model is given at each step", "The model is given the first row for every row.",
            {"window": lambda s, ids: ids[:1, -s.size.context_length :].expand(ids.shape[0], -1)}),
    Mistake("all tokens from one pass", "generate", "what the model is given at each step",
            "All new tokens are read from one pass over the prompt.", {"generate": all_at_once}),
    Mistake("only new tokens returned", "generate", R, "Only the new tokens come back; the prompt has to come first.", {"result": lambda s, t, p: t[:, p.shape[1] :]}),
    Mistake("only the last token returned", "generate", R, "Only the last token comes back.", {"result": lambda s, t, p: t[:, -1:]}),
    Mistake("prompt twice", "generate", R, "The prompt comes back twice.", {"result": lambda s, t, p: torch.cat([p, t], 1)}),
    Mistake("only the prompt returned", "generate", R, "The text comes back as it was given.", {"result": lambda s, t, p: p}),
    Mistake("only the first row returned", "generate", R, "Only the first row comes back.", {"result": lambda s, t, p: t[:1]}),
    Mistake("batch axis dropped", "generate", R, "The first row comes back without the batch axis.", {"result": lambda s, t, p: t[0]}),
    Mistake("axes of length one dropped", "generate", R, "Axes of length one are squeezed away.", {"result": lambda s, t, p: t.squeeze()}),
    Mistake("floats returned", "generate", R, "Tokens come back as floating-point numbers.", {"typed": lambda s, t: t.double()}),
    Mistake("prompt's first token dropped", "generate", R, "The first token of the prompt is lost.", {"result": lambda s, t, p: t[:, 1:]}),
    Mistake("returned text cropped", "generate", R,
            "The returned text is cut to the context, so that the beginning of the prompt is lost; only what the model is given may be cut.",
            {"generate": forgetful}),
    Mistake("new tokens in front", "generate", R, "New tokens are put in front of the text.", {"append": lambda s, ids, t: torch.cat([t, ids], 1)}),
    Mistake("last token overwritten", "generate", R, "The new token replaces the last one of the text.", {"append": lambda s, ids, t: torch.cat([ids[:, :-1], t], 1)}),
    Mistake("each token appended twice", "generate", R, "Each new token is appended twice.", {"append": lambda s, ids, t: torch.cat([ids, t, t], 1)}),
    Mistake("num_new_tokens taken as the total length", "generate", "the number of new tokens",
            "num_new_tokens is taken as the length of the whole text.", {"count": lambda s, ids, n: n - ids.shape[1]}),
    Mistake("one token too few", "generate", "the number of new tokens", "One token too few is made.", {"count": lambda s, ids, n: n - 1}),
    Mistake("one token too many", "generate", "the number of new tokens", "One token too many is made.", {"count": lambda s, ids, n: n + 1}),
    Mistake("one token only", "generate", "the number of new tokens", "One token is made, whatever num_new_tokens says.", {"count": lambda s, ids, n: 1}),
    Mistake("filled up to the context", "generate", "the number of new tokens", "The text is continued up to the context's length.",
            {"count": lambda s, ids, n: s.size.context_length - ids.shape[1]}),
]  # fmt: skip


def against(
    logits: Callable[[Tensor], Tensor], targets: Callable[[Tensor], Tensor]
) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda self, y, ids: (logits(y), targets(ids))


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
    Mistake("no shift", "loss", S, "There is no shift: each position is held against its own token, which it has seen.", {"align": against(lambda y: y, lambda t: t)}),
    Mistake("no shift, last position left out", "loss", S, "There is no shift: each position is held against its own token, which it has seen.",
            {"align": against(lambda y: y[:, :-1], lambda t: t[:, :-1])}),
    Mistake("no shift, first position left out", "loss", S, "There is no shift: each position is held against its own token, which it has seen.",
            {"align": against(lambda y: y[:, 1:], lambda t: t[:, 1:])}),
    Mistake("shift twice", "loss", S, "The shift is made twice: each position is held against the token after the next.",
            {"align": against(lambda y: y[:, :-2], lambda t: t[:, 2:])}),
    Mistake("shift the wrong way", "loss", S, "The shift goes the wrong way: each position is held against the token before it.",
            {"align": against(lambda y: y[:, 1:], lambda t: t[:, :-1])}),
    Mistake("targets rolled", "loss", S, "The targets are rolled: the last position is held against the row's first token.",
            {"align": against(lambda y: y, lambda t: t.roll(-1, 1))}),
    Mistake("targets padded with 0", "loss", S, "The last position is held against a padding of 0.",
            {"align": against(lambda y: y, lambda t: F.pad(t[:, 1:], (0, 1)))}),
    Mistake("first prediction left out", "loss", S, "The first prediction is left out.", {"align": against(lambda y: y[:, 1:-1], lambda t: t[:, 2:])}),
    Mistake("last prediction left out", "loss", S, "The last prediction is left out.", {"align": against(lambda y: y[:, :-2], lambda t: t[:, 1:-1])}),
    Mistake("last prediction only", "loss", S, "Only the last prediction counts.", {"align": against(lambda y: y[:, -2:-1], lambda t: t[:, -1:])}),
    Mistake("first row only", "loss", S, "Only the first row of the batch counts.", {"rows": lambda s, ids: ids[:1]}),
    Mistake("shift along the batch", "loss", S, "The shift is made along the batch, not along the positions.",
            {"align": against(lambda y: y[:-1], lambda t: t[1:])}),
    Mistake("shift after flattening", "loss", S, "The shift is made after the rows were joined: the end of a row predicts the next row's start.",
            {"align": against(lambda y: y.flatten(0, 1)[None, :-1], lambda t: t.flatten()[None, 1:])}),
    Mistake("softmax before cross entropy", "loss", "the cross entropy", "Cross entropy is given probabilities; it makes its own from logits.",
            {"surprise": lambda s, y, t: cross(y.softmax(-1), t)}),
    Mistake("sign", "loss", "the cross entropy", "The sign is wrong: this is the log-likelihood.", {"finish": lambda s, x, t: -x}),
    Mistake("bits for nats", "loss", "the cross entropy", "The logarithm has base 2.", {"finish": lambda s, x, t: x / math.log(2)}),
    Mistake("probability for its logarithm", "loss", "the cross entropy", "The logarithm is missing: probabilities are averaged.",
            {"surprise": lambda s, y, t: -(-cross(y, t)).exp()}),
    Mistake("raw logits of the targets", "loss", "the cross entropy", "The softmax is missing: raw logits of the targets are averaged.",
            {"surprise": lambda s, y, t: -y.gather(-1, t[..., None])[..., 0]}),
    Mistake("squared error", "loss", "the cross entropy", "It is a squared error, not a cross entropy.",
            {"surprise": lambda s, y, t: (y - F.one_hot(t, y.shape[-1]).to(y.dtype)).square().mean(-1)}),
    Mistake("label smoothing", "loss", "the cross entropy", "Label smoothing of 0.1 is on.",
            {"surprise": lambda s, y, t: 0.9 * cross(y, t) - 0.1 * y.log_softmax(-1).mean(-1)}),
    Mistake("softmax over positions", "loss", "the cross entropy", "The softmax runs over the positions, not over the vocabulary.",
            {"surprise": lambda s, y, t: -y.log_softmax(1).gather(-1, t[..., None])[..., 0]}),
    Mistake("vocabulary and positions mixed up", "loss", "the cross entropy",
            "The logits are reshaped where they have to be transposed: vocabulary and positions are mixed up.", {"surprise": scrambled}),
    Mistake("targets transposed", "loss", "the cross entropy", "The targets are flattened in another order than the logits.", {"surprise": transposed_targets}),
    Mistake("sum for mean", "loss", L, "The losses are summed, not averaged.", {"reduce": lambda s, x, t: x.sum()}),
    Mistake("sum over positions", "loss", L, "The losses are summed over the positions and averaged over the rows.", {"reduce": lambda s, x, t: x.sum() / x.shape[0]}),
    Mistake("sum over rows", "loss", L, "The losses are summed over the rows and averaged over the positions.", {"reduce": lambda s, x, t: x.sum() / x.shape[1]}),
    Mistake("divided by all positions", "loss", L, "The sum is divided by all positions, though the last makes no prediction.",
            {"reduce": lambda s, x, t: x.sum() / (x.shape[0] * (x.shape[1] + 1))}),
    Mistake("divided by the batch size once more", "loss", L, "The mean is divided by the batch size once more.", {"finish": lambda s, x, t: x / t.shape[0]}),
    Mistake("divided by the length once more", "loss", L, "The mean is divided by the number of positions once more.",
            {"finish": lambda s, x, t: x / (t.shape[1] + 1)}),
    Mistake("divided by the number of predictions once more", "loss", L, "The mean is divided by the number of predictions once more.",
            {"finish": lambda s, x, t: x / t.shape[1]}),
    Mistake("token 0 ignored", "loss", L, "Token 0 is left out of the mean, as if it were padding.", {"reduce": without_zeros}),
    Mistake("token 0 counts nothing", "loss", L, "The losses of token 0 are set to 0, as if it were padding.", {"reduce": lambda s, x, t: (x * (t != 0)).mean()}),
    Mistake("a loss per position", "loss", L, "The losses are not averaged: a number per position comes back.", {"reduce": lambda s, x, t: x}),
    Mistake("a loss per row", "loss", L, "The losses are averaged over positions only: a number per row comes back.", {"reduce": lambda s, x, t: x.mean(1)}),
    Mistake("a flat list of losses", "loss", L, "The losses are not averaged: a number per prediction comes back.", {"reduce": lambda s, x, t: x.flatten()}),
    Mistake("perplexity", "loss", L, "The exponential of the loss comes back (the perplexity).", {"finish": lambda s, x, t: x.exp()}),
    Mistake("largest loss", "loss", L, "The largest loss comes back, not the mean.", {"reduce": lambda s, x, t: x.max()}),
    Mistake("median loss", "loss", L, "The median comes back, not the mean.", {"reduce": lambda s, x, t: x.flatten().median()}),
]  # fmt: skip
