"""A Hugging Face GPT-2's config.json as a ModelConfig, and back. Settings that change GPT-2's formulas are refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.model.config import ModelConfig
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import LayerNorm
from hectogpt.serialization import diff

# The largest values that are believed: a damaged file must not make torch ask for terabytes.
LARGEST = {"vocab_size": 10**7, "n_positions": 10**6, "n_embd": 10**5, "n_layer": 500, "n_head": 10**4}
# Settings that can change GPT-2's formulas, with the values that do not. The first value is the default.
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True, False),
}
DEFAULTS = {name: values[0] for name, values in FIXED.items()} | {"layer_norm_epsilon": 1e-5}


def parse_config(config: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """The sizes of a GPT-2. Raises UserError (CHECKPOINT) that lists every problem at once."""
    problems = []
    for name, most in LARGEST.items():
        value = config.get(name)
        if type(value) is not int or not 1 <= value <= most:
            problems.append(f"{name} is {_shown(config, name)}, expected a whole number from 1 to {most:,}")
    if not problems and config["n_embd"] % config["n_head"]:
        problems.append(f"n_embd {config['n_embd']} is not divisible by n_head {config['n_head']}")
    chosen = DEFAULTS | config
    for name, allowed in FIXED.items():
        if not any(chosen[name] is value or (isinstance(value, str) and chosen[name] == value) for value in allowed):
            expected = " or ".join(json.dumps(value, allow_nan=False) for value in allowed)
            problems.append(f"{name} is {_shown(config, name)}, expected {expected}")
    inner = config.get("n_inner")
    width = config.get("n_embd")
    if inner is not None and not (type(inner) is type(width) is int and inner == 4 * width):
        problems.append(f"n_inner is {_shown(config, 'n_inner')}, expected null or 4 n_embd")
    epsilon = chosen["layer_norm_epsilon"]
    if type(epsilon) is not float or not 0 < epsilon < 1:
        problems.append(f"layer_norm_epsilon is {_shown(config, 'layer_norm_epsilon')}, expected one between 0 and 1")
    if problems:
        raise UserError(f"{where} is not a GPT-2's", why="; ".join(problems), code=errors.CHECKPOINT)
    return ModelConfig(
        d_model=config["n_embd"],
        n_heads=config["n_head"],
        n_layers=config["n_layer"],
        context_length=config["n_positions"],
        vocab_size=config["vocab_size"],
        norm=LayerNorm(eps=epsilon),
        lm_head=LMHeadConfig(tied=chosen["tie_word_embeddings"]),
    )


def gpt2_differences(config: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Field -> (GPT-2's value, this model's) for every field in which a model is not the GPT-2 of its sizes; empty for
    a GPT-2. What GPT-2's own config.json can say (sizes, the norm's epsilon, a tied head) is no difference."""
    gpt2 = ModelConfig(config.d_model, config.n_heads, config.n_layers, config.context_length, config.vocab_size)
    gpt2 = replace(gpt2, lm_head=LMHeadConfig(tied=config.lm_head.tied))
    if type(config.norm) is LayerNorm:
        gpt2 = replace(gpt2, norm=config.norm)
    if config.attention_scale is not None and math.isclose(config.attention_scale, config.d_attention**-0.5):
        gpt2 = replace(gpt2, attention_scale=config.attention_scale)
    if not config.n_layers:
        gpt2 = replace(gpt2, n_layers=1)
    return diff(gpt2, config)


def write_config(config: ModelConfig, end_of_text: int, dtype: str) -> dict[str, Any]:
    """config.json of a GPT2LMHeadModel; the inverse of `parse_config`. dtype: that of the weights, as torch names it.

    There is no dropout here, so its probabilities are 0.
    """
    assert isinstance(config.norm, LayerNorm)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm.eps,
        "initializer_range": 0.02,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "tie_word_embeddings": config.lm_head.tied,
        "use_cache": True,
        "dtype": dtype,
    }


def _shown(config: dict[str, Any], name: str) -> str:
    return repr(config[name])[:40] if name in config else "missing"
