"""The transformer of the assignment as plain functions of named tensors.

Its steps are so small that each known mistake changes only one or two methods. It shares no code
with the textbook or with the fast model. The parent uses it to compute the right result of a part,
and the results of known mistakes (subclasses that replace methods, see mistakes.py). The child
uses it instead of the parts below the one that is judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hectogpt.assignment.parts import BY_NAME
from hectogpt.grade.laws import Size


class Computation:
    """The parts of the model. The argument p is the prefix of the names of a part's weights.

    w: the tensors of a state dict, in any floating-point dtype.
    size: the sizes of the model.
    """

    def __init__(self, w: Mapping[str, Tensor], size: Size) -> None:
        self.w = w
        self.size = size

    # --- MLP: [batch, seq, d] -> [batch, seq, d]
    # -----------------------------------------------------------------

    def gelu(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def widen(self, p: str, x: Tensor) -> Tensor:
        return self.linear(p + "fc1", x)

    def bend(self, h: Tensor) -> Tensor:
        return self.gelu(h)

    def narrow(self, p: str, h: Tensor) -> Tensor:
        return self.linear(p + "fc2", h)

    def mlp(self, p: str, x: Tensor) -> Tensor:
        return self.narrow(p, self.bend(self.widen(p, x)))

    # --- attention: [batch, seq, d] -> [batch, seq, d]; heads are [batch, head, seq, d_attention]
    # -----------------

    def project(self, p: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.linear(p + name, x) for name in ("W_q", "W_k", "W_v"))
        return q, k, v

    def cut(self, t: Tensor) -> Tensor:
        batch, seq, d = t.shape
        return t.reshape(batch, seq, self.size.n_heads, d // self.size.n_heads).transpose(1, 2)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2)

    def scale(self, scores: Tensor) -> Tensor:
        return scores / math.sqrt(self.size.d_attention)

    def future(self, scores: Tensor) -> Tensor:
        """Return the mask [query, key], True where the key is later than the query."""
        return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)

    def hide(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.future(scores), -math.inf)

    def normalise(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def pattern(self, scores: Tensor) -> Tensor:
        return self.normalise(self.hide(self.scale(scores)))

    def join(self, z: Tensor) -> Tensor:
        return z.transpose(1, 2).flatten(2)

    def output(self, p: str, z: Tensor) -> Tensor:
        return self.linear(p + "W_o", z)

    def attention(self, p: str, x: Tensor) -> Tensor:
        q, k, v = (self.cut(t) for t in self.project(p, x))
        return self.output(p, self.join(self.pattern(self.scores(q, k)) @ v))

    # --- block: [batch, seq, d] -> [batch, seq, d]
    # ----------------------------------------------------------------

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        return self.affine(name, centred / torch.sqrt(variance + self.eps()))

    def eps(self) -> float:
        return 1e-5

    def affine(self, name: str, x: Tensor) -> Tensor:
        return x * self.w[name + ".weight"] + self.w[name + ".bias"]

    def first_norm(self, p: str, x: Tensor) -> Tensor:
        return self.norm(p + "pre_layer_norm", x)

    def second_norm(self, p: str, x: Tensor) -> Tensor:
        return self.norm(p + "post_layer_norm", x)

    def attend(self, p: str, x: Tensor) -> Tensor:
        return self.attention(p + "attention.", x)

    def think(self, p: str, x: Tensor) -> Tensor:
        return self.mlp(p + "mlp.", x)

    def first_half(self, p: str, x: Tensor) -> Tensor:
        return x + self.attend(p, self.first_norm(p, x))

    def second_half(self, p: str, x: Tensor) -> Tensor:
        return x + self.think(p, self.second_norm(p, x))

    def block(self, p: str, x: Tensor) -> Tensor:
        return self.second_half(p, self.first_half(p, x))

    # --- transformer: ids [batch, seq] -> [batch, seq, vocab]
    # ------------------------------------------------------

    def tokens(self, ids: Tensor) -> Tensor:
        return self.w["embeddings.weight"][ids]

    def positions(self, ids: Tensor) -> Tensor:
        return self.w["position_embeddings.weight"][: ids.shape[1]].expand(*ids.shape, -1)

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.positions(ids)

    def layers(self, n: int) -> list[int]:
        return list(range(n))

    def backbone(self, x: Tensor) -> Tensor:
        for number in self.layers(self.size.n_layers):
            x = self.block(f"backbone.{number}.", x)
        return x

    def final_norm(self, x: Tensor) -> Tensor:
        return self.norm("final_layer_norm", x)

    def head(self, x: Tensor) -> Tensor:
        return x @ self.w["lm_head.weight"].T

    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] > self.size.context_length:
            raise IndexError("index out of range: more tokens than the context")
        return self.head(self.final_norm(self.backbone(self.embed(ids))))

    # --- generation: ids [batch, seq] -> [batch, seq + n]
    # ----------------------------------------------------------

    def window(self, ids: Tensor) -> Tensor:
        return ids[:, -self.size.context_length :]

    def context(self, text: Tensor, prompt: Tensor, n: int) -> Tensor:
        """Return the tokens that the model reads at each step."""
        return self.window(text)

    def last(self, logits: Tensor) -> Tensor:
        """Select the last position: [batch, seq, vocab] -> [batch, vocab]."""
        return logits[:, -1]

    def choose(self, logits: Tensor) -> Tensor:
        """Choose the next tokens: [batch, vocab] -> [batch, 1]."""
        return logits.argmax(-1, keepdim=True)

    def count(self, ids: Tensor, n: int) -> int:
        return n

    def append(self, ids: Tensor, token: Tensor) -> Tensor:
        return torch.cat([ids, token], 1)

    def result(self, text: Tensor, prompt: Tensor) -> Tensor:
        return text

    def generate(self, ids: Tensor, n: int) -> Tensor:
        text = ids
        for _ in range(self.count(ids, n)):
            text = self.append(
                text, self.choose(self.last(self.forward(self.context(text, ids, n))))
            )
        return self.result(text, ids)

    # --- loss: ids [batch, seq] -> scalar
    # ---

    def seen(self, ids: Tensor) -> Tensor:
        """Return the part of the batch that the model reads."""
        return ids

    def align(self, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [batch, n, vocab] and the targets [batch, n] to compare them with."""
        return logits[:, :-1], ids[:, 1:]

    def surprise(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return minus the log of the probability of each target, [batch, n]."""
        return -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]

    def reduce(self, surprise: Tensor, targets: Tensor) -> Tensor:
        return surprise.mean()

    def finish(self, loss: Tensor, targets: Tensor) -> Tensor:
        return loss

    def loss(self, ids: Tensor) -> Tensor:
        logits, targets = self.align(self.forward(self.seen(ids)), ids)
        return self.finish(self.reduce(self.surprise(logits, targets), targets), targets)

    # ---

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def after(self, y: Tensor) -> Tensor:
        """Return the result of the judged part. A mistake may change it here."""
        return y

    def run(self, part: str, x: Tensor, n: int = 0) -> Tensor:
        """Return the result of a part for an input.

        A block, or a part inside one, has the weights of the first block.

        n: the number of new tokens, for "generate".
        """
        return self.after(self.compute(part, x, n))

    def compute(self, part: str, x: Tensor, n: int) -> Tensor:
        prefix = BY_NAME[part].prefix
        result: Tensor = getattr(self, part)(
            *((prefix, x) if prefix else (x, n) if part == "generate" else (x,))
        )
        return result
