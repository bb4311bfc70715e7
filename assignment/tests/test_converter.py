"""utils.state_dict_converter: Hugging Face's names and layout to ours."""

import torch
from checking import EXPECTED, check, check_close, check_error
from utils import state_dict_converter, switch_backbone_key


def tensors(name):
    return {key: torch.tensor(array, dtype=torch.float32) for key, array in EXPECTED["converter"][name].items()}


def check_converted(converted, expected):
    lacking, more = sorted(expected.keys() - converted.keys()), sorted(converted.keys() - expected.keys())
    check(not lacking, f"{len(lacking)} names are missing, such as {lacking[:1]}")
    check(not more, f"{len(more)} names are too many, such as {more[:1]}")
    for name, tensor in expected.items():
        check_close(converted[name], tensor, name, 0.0)


def test_converter():
    converted = state_dict_converter(tensors("theirs"))
    check_converted(converted, tensors("ours"))
    places = {tensor.data_ptr() for tensor in converted.values()}
    check(len(places) == len(converted), "two of the returned tensors share memory")


def test_one_key():
    theirs, ours = tensors("theirs"), tensors("ours")
    name = "h.11.attn.c_attn.bias"
    expected = {
        f"backbone.11.attention.{w}.bias": ours[f"backbone.11.attention.{w}.bias"] for w in ("W_q", "W_k", "W_v")
    }
    check_converted(switch_backbone_key(f"transformer.{name}", theirs[f"transformer.{name}"]), expected)


def test_without_prefix_and_with_masks():
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in tensors("theirs").items()}
    theirs |= {"h.0.attn.bias": torch.ones(1, 1, 3, 3), "h.11.attn.masked_bias": torch.tensor(-1e4)}
    check_converted(state_dict_converter(theirs), tensors("ours"))


def test_one_matrix_for_embeddings_and_head():
    theirs, ours = tensors("theirs"), tensors("ours")
    del theirs["lm_head.weight"]
    converted = state_dict_converter(theirs)
    check_converted(converted, ours | {"lm_head.weight": ours["embeddings.weight"]})
    shared = converted["lm_head.weight"].data_ptr() == converted["embeddings.weight"].data_ptr()
    check(not shared, "lm_head.weight and embeddings.weight share memory")


def test_unknown_names():
    for name in ("transformer.h.0.attn.rotary.weight", "transformer.wxe.weight"):
        check_error(KeyError, lambda name=name: state_dict_converter({name: torch.ones(2, 2)}), name)
