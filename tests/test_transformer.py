"""The fast model against the textbook: same state dicts, same logits, same loss, same gradients; and its own laws."""

from __future__ import annotations

import math
from dataclasses import replace

import model_solution as textbook
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt.errors import UserError
from hectogpt.model import SIZES, Init, ModelConfig, Transformer
from hectogpt.model.folder import load_model, save_model
from hectogpt.model.inputs import EmbeddingNorm, NgramHash, Smear, TokenTable
from hectogpt.model.parts import Head, NoPositions, QKNorm, ReLU2, RMSNorm, Rotary, Sinusoidal
from hectogpt.model.quantize import LightTransformer, weight_bytes
from hectogpt.model.shared_head import used_vocabulary

SMALL = ModelConfig(d_model=24, n_heads=3, n_layers=2, context_length=16, vocab_size=61)
DEPARTED = replace(
    SMALL,
    norm=RMSNorm(),
    activation=ReLU2(),
    positions=NoPositions(),
    inputs=(EmbeddingNorm(), NgramHash(2, 97), Smear()),
    values=(TokenTable(), NgramHash(3, 89)),
    heads=(Rotary(100.0, 0.5), QKNorm()),
    biases=False,
    head=Head(bias=True, soft_cap=15.0),
)


def peaked(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights with peaked attention, norms and biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.5 if p.ndim == 2 else 0.3
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * scale)
            if "layer_norm.weight" in name:
                p.add_(1)


def twins(dtype: torch.dtype) -> tuple[torch.nn.Module, Transformer]:
    sizes = (SMALL.d_model, SMALL.n_heads, SMALL.n_layers, SMALL.context_length, SMALL.vocab_size)
    slow = textbook.Transformer(textbook.ModelConfig(*sizes)).to(dtype)
    peaked(slow)
    fast = Transformer(SMALL).to(dtype)
    fast.load_state_dict(slow.state_dict(), strict=True)
    return slow, fast


def ids(batch: int = 3, time: int = 16, vocab: int = 61, seed: int = 1) -> torch.Tensor:
    return torch.randint(vocab, (batch, time), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equal_to_the_textbook(dtype: torch.dtype, tolerance: float) -> None:
    slow, fast = twins(dtype)
    x = ids()
    attention = fast.backbone[0].attention.weights(torch.randn(1, 16, 24, dtype=dtype), torch.arange(16)[None])
    assert attention.amax(-1).median() > 0.5  # peaked: a missing scale or swapped head would show
    logits, expected = fast(x), slow(x)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance * scale)
    loss, expected_loss = fast.get_loss_on_batch(x), slow.get_loss_on_batch(x)
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=tolerance)
    loss.backward()
    expected_loss.backward()
    gradients = {name: p.grad for name, p in fast.named_parameters()}
    for name, p in slow.named_parameters():
        if ".W_" in name and "W_o" not in name:
            fused = gradients[name.replace(name.split(".")[-2], "W_qkv")]
            ours = dict(zip(("W_q", "W_k", "W_v"), fused.chunk(3), strict=True))[name.split(".")[-2]]
        else:
            ours = gradients[name]
        torch.testing.assert_close(ours, p.grad, rtol=0, atol=tolerance * max(1.0, p.grad.abs().max().item()))


def test_state_dicts_go_both_ways_strictly() -> None:
    slow, fast = twins(torch.float32)
    again = textbook.Transformer(slow.config)
    again.load_state_dict(fast.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(slow.state_dict().values(), again.state_dict().values(), strict=True))
    assert len(fast.state_dict()) == 37
    assert set(fast.state_dict()) == set(slow.state_dict())
    with pytest.raises(RuntimeError, match="W_qkv"):
        fast.load_state_dict({k: v for k, v in slow.state_dict().items() if "W_k" not in k})


def test_same_seed_same_weights_as_the_textbook() -> None:
    slow, fast = twins(torch.float32)
    torch.manual_seed(5)
    slow._init_weights()
    fast.init_weights(Init(), seed=5)
    ours = fast.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in slow.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_generates_the_textbook_s_tokens(dtype: torch.dtype) -> None:
    slow, fast = twins(dtype)
    for time in (1, 5, 16):  # 12 new tokens pass the context of 16
        x = ids(time=time)
        assert torch.equal(fast.generate(x, 12), slow.generate(x, 12))
    assert torch.equal(fast.generate(ids(), 0), ids())


@pytest.mark.parametrize(
    "config", [SMALL, DEPARTED, replace(SMALL, positions=Sinusoidal())], ids=["gpt2", "new", "sin"]
)
def test_logits_ignore_later_tokens_and_heed_earlier_ones(config: ModelConfig) -> None:
    model = Transformer(config).double()
    peaked(model)
    seen = {}
    for part in (model.embeddings,):
        part.register_forward_hook(lambda m, a, out: (out.retain_grad(), seen.__setitem__("x", out))[0])
    model(ids(1))[0, 7].sum().backward()
    gradient = seen["x"].grad[0].abs().sum(-1)
    assert (gradient[8:] == 0).all()
    assert (gradient[:8] > 0).all()


def test_only_tuples_of_common_tokens_have_a_row() -> None:
    every, common = (NgramHash(2, 997, common=limit).build(4, 61, RMSNorm()) for limit in (None, 6))
    torch.nn.init.normal_(every.table.weight)
    common.load_state_dict(every.state_dict())
    tokens = torch.tensor([[35, 0, 35, 1, 17, 1, 5, 60, 60]])
    has_row = torch.tensor([[True, True, True, False, True, True, True, False, False]])  # 36 alone, then 36 x 1 ...
    nothing = torch.zeros(1, 9, 4)
    torch.testing.assert_close(common(nothing, tokens), every(nothing, tokens) * has_row[..., None], rtol=0, atol=0)
    common(nothing, tokens)[0, ~has_row[0]].sum().backward()
    assert not common.table.weight.grad.any()  # a pair without a row does not move one


def test_attention_weights_are_the_ones_the_model_uses() -> None:
    _, fast = twins(torch.float64)
    layer = fast.backbone[1].attention
    x, positions = torch.randn(2, 16, 24, dtype=torch.float64), torch.arange(16)[None]
    _, _, v = layer.qkv(x, positions)
    joined = (layer.weights(x, positions) @ v).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(layer.W_o(joined), layer(x, positions), rtol=1e-12, atol=1e-12)


def test_without_positions_and_with_a_full_mask_order_is_invisible() -> None:
    model = Transformer(replace(SMALL, positions=NoPositions())).double()
    peaked(model)
    for block in model.backbone:
        block.attention.causal = False
    x, order = ids(2), torch.randperm(16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(x[:, order]), model(x)[:, order], rtol=1e-12, atol=1e-12)
    _, placed = twins(torch.float64)
    for block in placed.backbone:
        block.attention.causal = False
    assert (placed(x[:, order]) - placed(x)[:, order]).abs().max() > 0.1


def test_rotary_scores_depend_on_distance_alone() -> None:
    part = Rotary().build(1, 8)
    q, k = torch.randn(2, 1, 1, 6, 8, dtype=torch.float64)
    here, there = torch.arange(6)[None], torch.arange(6)[None] + 41
    first, second = part(q, k, here), part(q, k, there)
    torch.testing.assert_close(first[0] @ first[1].mT, second[0] @ second[1].mT, rtol=1e-10, atol=1e-10)


def test_first_loss_is_that_of_guessing() -> None:
    for head, bound in ((0.0, 1e-6), (0.02, 0.05)):
        model = Transformer(SMALL, Init(head=head))
        assert abs(model.get_loss_on_batch(ids()).item() - math.log(61)) < bound


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([SMALL, DEPARTED]), st.integers(1, 4), st.integers(2, 16), st.integers(0, 2**31))
def test_a_row_does_not_see_the_others(config: ModelConfig, batch: int, time: int, seed: int) -> None:
    model = Transformer(config).double()
    peaked(model, seed % 7)
    x = ids(batch, time, seed=seed)
    together = model(x)
    alone = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("config", [SMALL, DEPARTED, replace(SMALL, head=Head(tied=True))], ids=["gpt2", "new", "tied"])
def test_a_saved_model_comes_back_bit_for_bit(config: ModelConfig, tmp_path) -> None:
    model = Transformer(config)
    peaked(model)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == config
    assert torch.equal(again(ids()), model.eval()(ids()))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_damaged_folder_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(tmp_path)
    save_model(Transformer(SMALL), tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(tmp_path)
    weights.write_bytes(whole)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"vocab_size": 61', '"vocab_size": 60'))
    with pytest.raises(UserError, match="shape"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(text.replace('"n_heads": 3', '"n_heads": 5'))
    with pytest.raises(UserError, match="n_heads"):
        load_model(tmp_path)


def test_words_not_in_use_share_one_logit_exactly(tmp_path) -> None:
    used, rows = used_vocabulary(torch.arange(0, 61, 2), 61)
    model = Transformer(replace(SMALL, head=Head(bias=True, soft_cap=9.0, shared=True, used=len(used)))).double()
    model.word_rows.copy_(rows)
    peaked(model)
    x = ids()
    logits = model(x)
    assert logits.shape[-1] == 61
    assert (logits[..., 1::2] == logits[..., 1:2]).all()
    log_p = logits.log_softmax(-1)  # over all 61 words
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, 16, dtype=torch.float64))
    expected = -log_p[:, :-1].gather(-1, x[:, 1:, None]).mean()
    torch.testing.assert_close(model.get_loss_on_batch(x), expected, rtol=1e-12, atol=1e-12)
    save_model(model.float(), tmp_path)
    assert torch.equal(load_model(tmp_path)(x), model(x))
    assert torch.equal(model.generate(x[:, :4], 3)[:, :4], x[:, :4])


@pytest.mark.parametrize("shared", [False, True])
def test_a_joint_head_is_its_matrix_plus_a_map_of_the_embeddings(shared: bool, tmp_path) -> None:
    """Same logits, loss and gradients as a head whose matrix is the sum; the embeddings get no gradient through it."""
    used, rows = used_vocabulary(torch.arange(0, 61, 2), 61)
    head = Head(bias=True, soft_cap=9.0, shared=shared, used=len(used) if shared else 0)
    model, plain = (Transformer(replace(DEPARTED, head=h)).double() for h in (replace(head, joint=0.3), head))
    peaked(model)
    weights = model.state_dict()
    added = 0.3 * weights["embeddings.weight"] @ weights.pop("joint.weight").T
    if shared:
        weights["word_rows"] = rows
        model.word_rows.copy_(rows)
        added = torch.cat((added[used], torch.zeros(1, 24)))
    weights["lm_head.weight"] = weights["lm_head.weight"] + added
    plain.load_state_dict(weights)
    x = ids()
    torch.testing.assert_close(model(x), plain(x), rtol=1e-12, atol=1e-12)
    losses = [m.get_loss_on_batch(x) for m in (model, plain)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
    for loss in losses:
        loss.backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, p.grad, rtol=1e-10, atol=1e-12)
    embeddings, gradient = model.embeddings.weight.detach(), model.lm_head.weight.grad
    if shared:
        embeddings, gradient = embeddings[used], gradient[:-1]
    torch.testing.assert_close(model.joint.weight.grad, 0.3 * gradient.T @ embeddings, rtol=1e-10, atol=1e-12)
    save_model(model.float(), tmp_path)
    again = load_model(tmp_path).state_dict()
    assert all(torch.equal(again.pop(name), tensor) for name, tensor in model.state_dict().items())
    assert not again
    light = LightTransformer(model)
    torch.testing.assert_close(light(x), model(x), rtol=1e-4, atol=1e-4)
    assert weight_bytes(light) < weight_bytes(model) - 4 * 61 * 24  # which reads the embeddings beside the head
    assert not Transformer(replace(DEPARTED, head=Head(joint=0.3)), Init(head=0.5)).joint.weight.any()


def test_sizes_have_the_published_parameter_counts() -> None:
    def count(config: ModelConfig) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in Transformer(config).parameters())

    assert count(SIZES["tiny"]) == 3_374_415
    assert count(replace(SIZES["gpt2"], head=Head(tied=True))) == 124_439_808
    assert count(SIZES["gpt2"]) > SIZES["gpt2"].parameter_floor() > 0.99 * count(SIZES["gpt2"])


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="n_heads among 1, 3, 11, 33"):
        replace(SIZES["tiny"], n_heads=4)
    with pytest.raises(UserError, match="d_model"):
        replace(SMALL, d_model=0)
    with pytest.raises(UserError, match="even"):
        Transformer(replace(SMALL, d_model=33, positions=Sinusoidal()))
    with pytest.raises(UserError, match="soft_cap"):
        Head(soft_cap=-1.0)
    with pytest.raises(UserError, match="tied"):
        Head(joint=0.1, tied=True)
    with pytest.raises(UserError, match="joint"):
        Head(joint=math.nan)
