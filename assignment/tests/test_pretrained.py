"""Transformer.from_pretrained, with stand-ins for `transformers` and state_dict_converter: no network, no files."""

import sys
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import model_solution
import torch
import utils
from checking import EXPECTED, check, check_close, check_error, weights
from model_solution import ModelConfig, Transformer

SETTINGS = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


def load(asked=None, **changes):
    """Call from_pretrained where `transformers` has one model, with these changes of its config."""
    sizes = dict(
        zip(("n_embd", "n_head", "n_layer", "n_positions", "vocab_size"), EXPECTED["config"].values(), strict=True)
    )
    theirs = SimpleNamespace(config=SimpleNamespace(**sizes, **(SETTINGS | changes)), state_dict=lambda: {"theirs": 1})
    names = []

    class GPT2LMHeadModel:
        @staticmethod
        def from_pretrained(name, *args, **kwargs):
            names.append(name)
            return theirs

    module = ModuleType("transformers")
    module.GPT2LMHeadModel = GPT2LMHeadModel

    def convert(state_dict):
        check(
            state_dict == {"theirs": 1}, "state_dict_converter was called with something else than their state_dict()"
        )
        return {name: tensor.float() for name, tensor in weights().items()}

    with (
        patch.dict(sys.modules, transformers=module),
        patch.object(utils, "state_dict_converter", convert),
        patch.object(model_solution, "state_dict_converter", convert, create=True),
        patch.object(Transformer, "_init_weights", lambda self, *args, **kwargs: None),
    ):
        return (Transformer.from_pretrained(asked) if asked else Transformer.from_pretrained()), names


def test_loads():
    model, names = load("some/folder")
    check(isinstance(model, Transformer), f"a Transformer was expected, yours is {model!r:.60}")
    check(names == ["some/folder"], f"asked for {names}, expected the given name, 'some/folder'")
    check(model.config == ModelConfig(**EXPECTED["config"]), f"config: {model.config}, expected {EXPECTED['config']}")
    for name, tensor in model.state_dict().items():
        check_close(tensor, weights()[name], name)
    check(load()[1] == ["gpt2"], "without a name it is 'gpt2'")


def test_refuses_what_computes_something_else():
    for field, value in {
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-6,
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
    }.items():
        check_error(ValueError, lambda field=field, value=value: load(**{field: value}), f"{field} = {value}")


def test_every_call_makes_a_new_model():
    first, second = load()[0], load()[0]
    with torch.no_grad():
        first.lm_head.weight.zero_()
    check(bool(second.lm_head.weight.any()), "two loaded models share their weights")
