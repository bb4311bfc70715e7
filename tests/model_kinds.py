"""Small models that between them have every part of the package, for laws that hold for all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from helpers import peaked
from torch import Tensor, nn

from hectogpt.model import ModelConfig, Transformer
from hectogpt.model.inputs import EmbeddingNorm, Induction, NgramHash, Smear, Spelling, SpellingLayer, TokenTable
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import NoPositions, QKNorm, ReLU2, RMSNorm, Rotary, ScoreBias, SinusoidalPositions
from hectogpt.model.pointer import PointerHead


@dataclass(frozen=True)
class ALiBi(ScoreBias):
    """Attention with linear biases (2108.12409): head h of n subtracts 2^(-8 h / n) per token of distance, h from 1."""

    def build(self, n_heads: int, d_head: int) -> nn.Module:
        return ALiBiLayer(n_heads)


class ALiBiLayer(nn.Module):
    slopes: Tensor

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        slopes = 2.0 ** (-8 * torch.arange(1, n_heads + 1, device="cpu") / n_heads)
        self.register_buffer("slopes", slopes[:, None, None], persistent=False)

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        return self.slopes * (key_positions - query_positions)


L = 10  # context length
GPT2 = ModelConfig(16, 2, 2, L, 40)
BARE = replace(GPT2, positions=NoPositions())
KINDS = {
    "gpt2": GPT2,
    "no layer": replace(GPT2, n_layers=0),
    "two ids": replace(GPT2, vocab_size=2, n_layers=1),
    "context of one": replace(GPT2, context_length=1),
    "looks back": replace(GPT2, inputs=(Smear(), NgramHash(rows=97, common=9), EmbeddingNorm())),
    "rotary": replace(BARE, attention_parts=(Rotary(), QKNorm()), norm=RMSNorm(), activation=ReLU2()),
    "alibi": replace(BARE, attention_parts=(ALiBi(),)),
    "alibi among others": replace(GPT2, n_heads=4, attention_parts=(QKNorm(), ALiBi(), Rotary(fraction=0.5), ALiBi())),
    "value embeddings": replace(BARE, d_input=9, value_embeddings=(TokenTable(), NgramHash(3, 89)), biases=False),
    "induction": replace(
        BARE, vocab_size=5, inputs=(Spelling(7, 0.5), Smear(), Induction(3)), lm_head=LMHeadConfig(embedding_map=0.3)
    ),
    "embedding map": replace(GPT2, d_input=9, lm_head=LMHeadConfig(embedding_map=0.3)),
    "pointer": replace(BARE, inputs=(Smear(),), pointer=PointerHead(gate=-0.5, score_biases=True)),
    "documents": replace(BARE, vocab_size=5, document_start=2, pointer=PointerHead(gate=-0.5)),
    "everything": replace(
        GPT2,
        positions=SinusoidalPositions(),
        attention_parts=(QKNorm(), Rotary(fraction=0.5)),
        inputs=(NgramHash(order=3, rows=31), Smear((0.3, 0.2, 0.1))),
        lm_head=LMHeadConfig(bias=True, soft_cap=5.0, tied=True),
        attention_scale=0.7,
    ),
    "everything else": replace(
        GPT2,
        norm=RMSNorm(gain=True),
        activation=ReLU2(),
        biases=False,
        attention_parts=(Rotary(100.0, 0.5), QKNorm()),
        inputs=(EmbeddingNorm(), NgramHash(2, 97), Smear(), Induction()),
        value_embeddings=(TokenTable(), NgramHash(3, 89)),
        lm_head=LMHeadConfig(bias=True, soft_cap=9.0, compact_vocab=True, embedding_map=0.3),
        pointer=PointerHead(1.5, 0.0, score_biases=True),
        document_start=7,
    ),
}


def build(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> Transformer:
    """A model in evaluation mode whose attention is uneven and whose every weight counts. Where the vocabulary is
    compact, every third token is in use."""
    model = Transformer(config).to(dtype).eval()
    if config.lm_head.compact_vocab:
        model.lm_head.compact(torch.arange(0, config.vocab_size, 3))
    for module in model.modules():
        if isinstance(module, SpellingLayer):
            module.spell([f"{number % 7} {number:b}" for number in range(config.vocab_size)])
    return peaked(model, seed, scale=0.4)


def random_ids(rows: int, length: int, vocab: int = GPT2.vocab_size, seed: int = 1) -> torch.Tensor:
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))
