"""config.json of a GPT-2: every problem is named at once, and nothing but a UserError comes of any content."""

from __future__ import annotations

import contextlib

import pytest
from gpt2_folders import SIZES
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.interop.hf_config import FIXED, parse_config

GOOD = {**SIZES, "model_type": "gpt2", "n_inner": None, "layer_norm_epsilon": 1e-5}


def test_all_problems_are_named_at_once():
    bad = {
        **GOOD,
        "n_embd": "32",
        "n_layer": True,
        "activation_function": "relu",
        "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
        "layer_norm_epsilon": float("nan"),
    }
    del bad["vocab_size"]
    with pytest.raises(UserError) as caught:
        parse_config(bad)
    assert caught.value.code == errors.CHECKPOINT
    for name in ("vocab_size is missing", "n_embd", "n_layer", "activation", "inverse", "reorder", "epsilon"):
        assert name in caught.value.why


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_head", 3),
        ("n_head", 0),
        ("n_embd", 1e2),
        ("n_embd", 10**9),
        ("n_inner", 64),
        ("n_inner", "128"),
        ("model_type", "llama"),
        ("model_type", None),
        ("scale_attn_weights", False),
        ("add_cross_attention", True),
        ("tie_word_embeddings", "yes"),
        ("tie_word_embeddings", 1),
        ("layer_norm_epsilon", 0),
        ("activation_function", ["gelu_new"]),
    ],
)
def test_what_is_not_gpt2_is_refused_by_name(name, value):
    with pytest.raises(UserError) as caught:
        parse_config({**GOOD, name: value})
    assert name in caught.value.why


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})


@given(changes=st.dictionaries(st.sampled_from([*GOOD, *FIXED]), json_values))
@settings(max_examples=200)
def test_any_config_is_read_or_refused(changes):
    with contextlib.suppress(UserError):  # and no other error
        parse_config({**GOOD, **changes})
