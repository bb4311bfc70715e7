"""Known mistakes in Transformer.forward."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hectogpt.grade.computation import Computation
from hectogpt.grade.mistake import of
from hectogpt.grade.mistakes_layers import NORM_MISTAKES, ends


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


def final(method: str, change: Callable[..., Tensor]) -> Callable[[Computation, Tensor], Tensor]:
    """The final norm alone with a mistake in a norm."""

    def norm(self: Computation, x: Tensor) -> Tensor:
        return type("Final", (Computation,), {method: change})(self.w, self.size).norm("final_layer_norm", x)

    return norm


forward = of("forward")
P, T, B = "the position embeddings", "the token embeddings", "the loop over the blocks"
FORWARD = [
    forward("no position embeddings", P, "The position embeddings are not added.", positions=lambda s, ids: torch.zeros(())),
    forward("positions from 1", P, "Positions are counted from 1.", positions=positioned(lambda s, ids: torch.arange(1, ids.shape[1] + 1))),
    forward("positions from 1, modulo the context", P, "Positions are counted from 1, and the last one is 0 again.", positions=positioned(lambda s, ids: torch.arange(1, ids.shape[1] + 1) % s.size.context_length)),
    forward("positions from 1, the last one twice", P, "Positions are counted from 1, up to the last one of the table.", positions=positioned(lambda s, ids: torch.arange(1, ids.shape[1] + 1).clamp(max=s.size.context_length - 1))),
    forward("positions backwards", P, "Positions run backwards, from the last to the first.", positions=positioned(lambda s, ids: torch.arange(ids.shape[1]).flip(0))),
    forward("positions from the end of the context", P, "Positions are counted from the end of the context.", positions=positioned(lambda s, ids: torch.arange(s.size.context_length - ids.shape[1], s.size.context_length))),
    forward("positions from the batch axis", P, "Positions are counted along the batch: all tokens of a row have the same one.", positions=positioned(lambda s, ids: torch.arange(ids.shape[0])[:, None])),
    forward("one position for all", P, "All tokens have position 0.", positions=positioned(lambda s, ids: torch.zeros(1, dtype=torch.long))),
    forward("the last position for all", P, "All tokens have the last position.", positions=positioned(lambda s, ids: torch.tensor([ids.shape[1] - 1]))),
    forward("position of the length for all", P, "All tokens have the number of positions as their position.", positions=positioned(lambda s, ids: torch.tensor([ids.shape[1]]))),
    forward("token ids as positions", P, "The position table is asked for the token ids.", positions=positioned(lambda s, ids: ids)),
    forward("whole position table", P, "The whole position table is added, whatever the length of the input.", positions=lambda s, ids: s.w["position_embeddings.weight"].expand(ids.shape[0], -1, -1)),
    forward("positions multiplied", P, "The position embeddings are multiplied with the tokens instead of added.", embed=lambda s, ids: s.tokens(ids) * s.positions(ids)),
    forward("positions subtracted", P, "The position embeddings are subtracted.", embed=lambda s, ids: s.tokens(ids) - s.positions(ids)),
    forward("positions added twice", P, "The position embeddings are added twice.", embed=lambda s, ids: s.tokens(ids) + 2 * s.positions(ids)),
    forward("sinusoids for positions", P, "Sinusoids stand where the learned position embeddings belong.", positions=sinusoids),
    forward("no token embeddings", T, "The tokens are never looked up: only positions go into the blocks.", embed=lambda s, ids: s.positions(ids)),
    forward("token embeddings from the head", T, "The tokens are looked up in the head's matrix.", tokens=lambda s, ids: s.w["lm_head.weight"][ids]),
    forward("token embeddings times the root of d_model", T, "The token embeddings are multiplied by the root of d_model, as in the first transformer; GPT-2 does not.", tokens=lambda s, ids: s.w["embeddings.weight"][ids] * s.size.d_model**0.5),
    forward("first token everywhere", T, "Every position looks up the row's first token.", tokens=lambda s, ids: s.w["embeddings.weight"][ids[:, :1].expand_as(ids)]),
    forward("first row for all", T, "Every row of the batch is computed from the first.", tokens=lambda s, ids: s.w["embeddings.weight"][ids[:1].expand_as(ids)]),
    forward("embeddings normalised", T, "The embeddings are normalised before the first block.", embed=lambda s, ids: s.final_norm(s.tokens(ids) + s.positions(ids))),
    forward("no blocks", B, "The blocks are not applied.", layers=through(lambda n: [])),
    forward("first block only", B, "Only the first block is applied.", layers=through(lambda n: [0])),
    forward("last block skipped", B, "The last block is left out.", layers=through(lambda n: list(range(n - 1)))),
    forward("first block skipped", B, "The first block is left out.", layers=through(lambda n: list(range(1, n)))),
    forward("first block each time", B, "The first block is applied n times instead of each block once.", layers=through(lambda n: [0] * n)),
    forward("last block each time", B, "The last block is applied n times instead of each block once; perhaps one block object stands in all places.", layers=through(lambda n: [n - 1] * n)),
    forward("blocks in reverse", B, "The blocks are applied in reverse order.", layers=through(lambda n: list(range(n))[::-1])),
    forward("blocks twice", B, "The blocks are applied twice.", layers=through(lambda n: [*range(n), *range(n)])),
    forward("each block reads the embeddings", B, "Every block reads the embeddings: the result of the one before is thrown away.", backbone=blocks_on_input),
    forward("positions added before each block", B, "The position embeddings are added before every block, not once.", backbone=blocks_positioned),
    forward("last block only", B, "Only the last block is applied.", layers=through(lambda n: [n - 1])),
    forward("residual around the blocks", B, "The stream is added once more around each block.", backbone=blocks_with_sum),
    forward("final norm after each block", B, "The final norm is applied after each block.", backbone=blocks_normalised, final_norm=lambda s, x: s.norm("final_layer_norm", x)),
    forward("no final norm", "the final norm", "The final norm is not applied.", final_norm=lambda s, x: x),
    forward("final norm twice", "the final norm", "The final norm is applied twice.", final_norm=lambda s, x: s.norm("final_layer_norm", s.norm("final_layer_norm", x))),
    forward("final norm before the blocks only", "the final norm", "The final norm stands before the blocks instead of after them.", embed=lambda s, ids: s.norm("final_layer_norm", s.tokens(ids) + s.positions(ids)), final_norm=lambda s, x: x),
    forward("final norm after the head", "the final norm", "A softmax or norm stands after the head.", final_norm=lambda s, x: x, head=lambda s, x: F.layer_norm(x @ s.w["lm_head.weight"].T, (s.size.vocab_size,))),
    forward("final residual of the embeddings", "the final norm", "The embeddings are added once more before the final norm.", forward=lambda s, ids: s.head(s.final_norm(s.backbone(s.embed(ids)) + s.embed(ids)))),
    *(forward(f"final {name}" if name[0] != "R" else "final RMS norm", "the final norm", what, final_norm=final(method, f)) for name, what, method, f in NORM_MISTAKES if "eps" not in name),  # its input is too large for eps to show
    forward("head tied to the embeddings", "the head", "The logits are made with the embeddings; lm_head is a matrix of its own here.", head=lambda s, x: x @ s.w["embeddings.weight"].T),
    forward("no head", "the head", "The head is not applied: vectors of d_model come back, not a score for each token.", head=lambda s, x: x),
    forward("softmax returned", "the result", "Probabilities come back, not logits.", shown=lambda s, y: y.softmax(-1)),
    forward("log softmax returned", "the result", "Log-probabilities come back, not logits.", shown=lambda s, y: y.log_softmax(-1)),
    forward("argmax returned", "the result", "The likeliest tokens come back, not logits.", shown=lambda s, y: y.argmax(-1)),
    forward("logits of the last position only", "the result", "Only the last position's logits come back.", shown=lambda s, y: y[:, -1]),
    forward("logits of the last position, axis kept", "the result", "Only the last position's logits come back.", shown=lambda s, y: y[:, -1:]),
    forward("logits of all but the last position", "the result", "The last position's logits are cut off.", shown=lambda s, y: y[:, :-1]),
    forward("logits transposed", "the result", "The axes of positions and vocabulary are swapped in the result.", shown=lambda s, y: y.transpose(1, 2)),
    forward("logits flattened", "the result", "The axes of batch and positions are merged in the result.", shown=lambda s, y: y.flatten(0, 1)),
    forward("axes of length one dropped", "the result", "Axes of length one are squeezed away.", shown=lambda s, y: y.squeeze()),
    forward("logits scaled", "the result", "The logits are divided by the root of d_model.", shown=lambda s, y: y * s.size.d_model**-0.5),
]  # fmt: skip
FORWARD += ends("forward", FORWARD)
