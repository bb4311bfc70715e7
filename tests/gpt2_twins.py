"""The textbook and Hugging Face's GPT-2 with the same weights, for tests of the textbook.

The weights are drawn to tell right from nearly right: attention is peaked, norms and biases are not trivial, head and
embeddings differ, rows and prompts differ. Freshly initialised weights would hide most mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from model_solution import ModelConfig, Transformer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

CONFIG = ModelConfig(d_model=48, n_heads=4, n_layers=2, context_length=16, vocab_size=61)
ASSIGNMENT = ModelConfig(d_model=33, n_heads=3, n_layers=3, context_length=512, vocab_size=50257)

precisions = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=["fp64", "fp32"]
)


# --- Two models with the same weights ---------------------------------------------------------------------------------


def hugging_face(dtype: torch.dtype = torch.float64, seed: int = 0, **changes: object) -> GPT2LMHeadModel:
    """A random GPT-2 whose every weight matters; its dropout is on, and silenced by eval() alone."""
    settings = {
        "n_embd": CONFIG.d_model,
        "n_head": CONFIG.n_heads,
        "n_layer": CONFIG.n_layers,
        "n_positions": CONFIG.context_length,
        "vocab_size": CONFIG.vocab_size,
        "attn_implementation": "eager",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = GPT2LMHeadModel(GPT2Config(**(settings | changes))).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if ".ln_" in name:
            noise = 0.5 * noise + (1 if name.endswith("weight") else 0)
        elif name.endswith("bias"):
            noise = 0.5 * noise
        elif "c_attn" in name:
            noise = 2.5 * noise / math.sqrt(CONFIG.d_model)
        elif "c_fc" in name or "c_proj" in name or "lm_head" in name:
            noise = noise / math.sqrt(CONFIG.d_model)
        parameter.data = noise
    return model.to(dtype)


def in_our_names(theirs: GPT2LMHeadModel, of: Callable[[Tensor], Tensor | None]) -> dict[str, Tensor]:
    """`of` every parameter (its data, its gradient) under our names; written apart from utils.py, to check it."""

    def get(parameter: Tensor) -> Tensor:
        value = of(parameter)
        return torch.zeros_like(parameter) if value is None else value

    body = theirs.transformer
    named = {
        "embeddings.weight": get(body.wte.weight),
        "position_embeddings.weight": get(body.wpe.weight),
        "final_layer_norm.weight": get(body.ln_f.weight),
        "final_layer_norm.bias": get(body.ln_f.bias),
        "lm_head.weight": get(theirs.lm_head.weight),
    }
    for n, block in enumerate(body.h):
        d = block.ln_1.weight.shape[0]
        for i, letter in enumerate("qkv"):
            columns = slice(i * d, (i + 1) * d)
            named[f"backbone.{n}.attention.W_{letter}.weight"] = get(block.attn.c_attn.weight)[:, columns].T
            named[f"backbone.{n}.attention.W_{letter}.bias"] = get(block.attn.c_attn.bias)[columns]
        for name, layer in (
            ("attention.W_o", block.attn.c_proj),
            ("mlp.fc1", block.mlp.c_fc),
            ("mlp.fc2", block.mlp.c_proj),
        ):
            named[f"backbone.{n}.{name}.weight"] = get(layer.weight).T
            named[f"backbone.{n}.{name}.bias"] = get(layer.bias)
        for name, norm in (("pre_layer_norm", block.ln_1), ("post_layer_norm", block.ln_2)):
            named[f"backbone.{n}.{name}.weight"] = get(norm.weight)
            named[f"backbone.{n}.{name}.bias"] = get(norm.bias)
    return named


def pair(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Transformer, GPT2LMHeadModel]:
    """The same weights twice. Ours stays in training mode: it has no part that depends on it."""
    theirs = hugging_face(dtype, seed)
    ours = Transformer(CONFIG).to(dtype)
    ours.load_state_dict(in_our_names(theirs, lambda parameter: parameter.data))
    return ours, theirs


def token_ids(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float, name: str = "") -> None:
    """Largest difference, in units of the largest value where that exceeds 1."""
    assert ours.shape == theirs.shape, name
    error = (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
    assert error <= tolerance, f"{name}: {error:.2e} apart, allowed {tolerance:.0e}"
