"""The textbook against Hugging Face's GPT-2: logits, generated tokens, loss and gradients; its contract; other people's
weights. Every mistake shows in these weights: attention is uneven, norms, rows and prompts differ."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gpt2_folders import make_gpt2
from helpers import peaked
from model_solution import CausalAttention, ModelConfig, Transformer
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from utils import state_dict_converter

from hectogpt.interop.hf_model import to_ours

CONFIG = ModelConfig(d_model=48, n_heads=4, n_layers=2, context_length=16, vocab_size=61)
ASSIGNMENT = ModelConfig(d_model=33, n_heads=3, n_layers=3, context_length=512, vocab_size=50257)

precisions = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=["fp64", "fp32"]
)


# --- Two models with the same weights ---------------------------------------------------------------------------------


def hugging_face(dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> GPT2LMHeadModel:
    """A random GPT-2 whose every weight matters; its dropout is on, and silenced by eval() alone."""
    sizes = {"n_embd": CONFIG.d_model, "n_head": CONFIG.n_heads, "n_layer": CONFIG.n_layers, "vocab_size": 61}
    own = {"n_positions": CONFIG.context_length, "attn_implementation": "eager", "tie_word_embeddings": False}
    return peaked(make_gpt2(dtype, **sizes | own | changes), seed, scale=0.3)


def in_our_names(theirs: GPT2LMHeadModel, gradients: bool = False) -> dict[str, Tensor]:
    """Every parameter, or its gradient, under our names by the table of the package; utils.py has one of its own."""
    named = theirs.named_parameters(remove_duplicate=False)
    return to_ours({name: p.data if not gradients or p.grad is None else p.grad for name, p in named}, CONFIG.n_layers)


def pair(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Transformer, GPT2LMHeadModel]:
    """The same weights twice. Ours stays in training mode: it has no part that depends on it."""
    theirs = hugging_face(dtype, seed)
    ours = Transformer(CONFIG).to(dtype)
    ours.load_state_dict(in_our_names(theirs))
    return ours, theirs


def token_ids(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float, name: str = "") -> None:
    """Largest difference, in units of the largest value where that exceeds 1."""
    assert ours.shape == theirs.shape, name
    error = (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
    assert error <= tolerance, f"{name}: {error:.2e} apart, allowed {tolerance:.0e}"


def test_the_weights_tell_right_from_nearly_right() -> None:
    theirs = hugging_face()
    patterns = theirs(token_ids(4, CONFIG.context_length), output_attentions=True).attentions
    for pattern in patterns:
        late = pattern[:, :, 8:]  # a query with nine or more keys; even attention would give its best key 0.11 or less
        assert late.max(dim=-1).values.mean() > 0.6
    for name, value in in_our_names(theirs).items():
        assert value.std() > 0.1, name


# --- CausalAttention --------------------------------------------------------------------------------------------------


def test_attention_never_sees_the_future_however_large_the_scores() -> None:
    attention: Any = pair()[0].backbone[0].attention
    with torch.no_grad():
        attention.W_q.weight *= 1000  # scores of some 10^6: a mask of -10^4 would let the future win
        attention.W_k.weight *= 1000
    x = torch.randn(2, 12, CONFIG.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = attention(x)
    moved = x.clone()
    moved[:, 5:] += 1
    assert torch.isfinite(y).all()
    assert torch.equal(attention(moved)[:, :5], y[:, :5])
    assert not torch.allclose(attention(moved)[:, 5:], y[:, 5:])


# --- Transformer.forward ----------------------------------------------------------------------------------------------


@precisions
@pytest.mark.parametrize("length", [1, 9, CONFIG.context_length])
def test_forward_agrees(dtype: torch.dtype, tolerance: float, length: int) -> None:
    ours, theirs = pair(dtype)
    ids = token_ids(5, length)
    assert_close(ours(ids), theirs(ids).logits, tolerance)
    assert torch.equal(ours.eval()(ids), ours.train()(ids))


def test_names_and_sizes() -> None:
    names = set(Transformer(CONFIG).state_dict())
    assert names == set(in_our_names(hugging_face()))
    assert len(names) == 37
    model = Transformer(ASSIGNMENT)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_374_415
    assert model.lm_head.weight is not model.embeddings.weight
    assert {norm.eps for norm in model.modules() if isinstance(norm, nn.LayerNorm)} == {1e-5}
    assert model.config == ASSIGNMENT
    attention = CausalAttention(CONFIG)
    assert attention.d_attention == CONFIG.d_model / CONFIG.n_heads
    assert dict(attention.named_buffers())["causal_mask"].shape == (1, 1, 16, 16)
    assert "causal_mask" not in attention.state_dict()


@pytest.mark.parametrize("scale_residual", [True, False])
def test_initial_weights_come_in_the_documented_order(scale_residual: bool) -> None:
    model = Transformer(CONFIG)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7)
    torch.manual_seed(11)
    model._init_weights(scale_residual=scale_residual)

    torch.manual_seed(11)
    residual = 0.02 / math.sqrt(2 * CONFIG.n_layers) if scale_residual else 0.02
    order = [("embeddings", 0.02), ("position_embeddings", 0.02)]
    for n in range(CONFIG.n_layers):
        order += [(f"backbone.{n}.attention.W_{letter}", 0.02) for letter in "kqv"]
        order += [(f"backbone.{n}.attention.W_o", residual), (f"backbone.{n}.mlp.fc1", 0.02)]
        order += [(f"backbone.{n}.mlp.fc2", residual)]
    order += [("lm_head", 0.02)]
    state = model.state_dict()
    for name, std in order:
        weight = state.pop(f"{name}.weight")
        assert torch.equal(weight, nn.init.normal_(torch.empty_like(weight), 0, std)), name
    for name, rest in state.items():  # norms and biases
        assert (rest == (1 if name.endswith("norm.weight") else 0)).all(), name


# --- generate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, CONFIG.context_length, CONFIG.context_length + 6])
def test_generate_agrees(length: int) -> None:
    ours, theirs = pair(seed=4)
    prompt = token_ids(4, length)
    expected = prompt
    for _ in range(2 * CONFIG.context_length):  # well past the context, whatever the prompt
        logits = theirs(expected[:, -CONFIG.context_length :]).logits[:, -1]
        expected = torch.cat([expected, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert len(set(map(tuple, expected[:, -8:].tolist()))) > 1  # the rows do not all say the same

    kept = prompt.clone()
    result = ours.generate(prompt, 2 * CONFIG.context_length)
    assert torch.equal(result, expected)
    assert result.dtype == prompt.dtype
    assert torch.equal(prompt, kept)
    assert torch.equal(ours.generate(x=prompt, num_new_tokens=0), prompt)


# --- get_loss_on_batch ------------------------------------------------------------------------------------------------


@precisions
def test_loss_agrees(dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = pair(dtype)
    ids = token_ids(3, CONFIG.context_length)
    loss, expected = ours.get_loss_on_batch(input_ids=ids), theirs(ids, labels=ids).loss
    assert loss.shape == ()
    # Hugging Face computes its loss in float32, whatever the model.
    assert_close(loss, expected.to(dtype), 1e-6 if dtype == torch.float64 else tolerance)

    log_probabilities = theirs(ids).logits.log_softmax(dim=-1)
    by_hand = -torch.stack(
        [log_probabilities[row, t - 1, ids[row, t]] for row in range(3) for t in range(1, CONFIG.context_length)]
    ).mean()
    assert_close(loss, by_hand, tolerance)
    loss.backward()
    by_hand.backward()
    gradients = in_our_names(theirs, gradients=True)
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert_close(parameter.grad, gradients[name], tolerance, name)


# --- weights of others ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("masks", [False, True])
def test_converter_agrees(prefix: str, masks: bool) -> None:
    theirs = hugging_face(torch.float32)
    state = {key.replace("transformer.", prefix): value for key, value in theirs.state_dict().items()}
    if masks:
        for n in range(CONFIG.n_layers):
            state[f"{prefix}h.{n}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
            state[f"{prefix}h.{n}.attn.masked_bias"] = torch.tensor(-1e4)
    converted = state_dict_converter(state)
    expected = in_our_names(theirs)
    assert converted.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(converted[name], value), name
        assert converted[name].is_contiguous(), name
    assert len({value.untyped_storage().data_ptr() for value in converted.values()}) == 37  # no shared memory
    Transformer(CONFIG).load_state_dict(converted, strict=True)


def test_pretrained_from_a_folder(tmp_path: Path) -> None:
    tied = hugging_face(torch.float32, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path)
    ours = Transformer.from_pretrained(str(tmp_path))
    ids = token_ids(2, CONFIG.context_length)
    assert ours.config == CONFIG
    assert_close(ours(ids), tied(ids).logits, 1e-4)
    assert ours.lm_head.weight.data_ptr() != ours.embeddings.weight.data_ptr()
    once = {key: value for key, value in tied.state_dict().items() if key != "lm_head.weight"}
    Transformer(CONFIG).load_state_dict(state_dict_converter(once))

    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"activation_function": "gelu"}))
    with pytest.raises(ValueError, match="activation_function = gelu"):
        Transformer.from_pretrained(str(tmp_path))
