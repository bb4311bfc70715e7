"""The C++ kernels of training: equal to float64 within bf16's rounding, and the same for any number of threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import small_run, tiny_corpus
from torch import Tensor

from hectogpt import hardware, torch_private
from hectogpt.model import Init, ModelConfig, Transformer, native
from hectogpt.model.fused_ce import Mixture, fused_cross_entropy
from hectogpt.model.inputs import TokenTable
from hectogpt.model.parts import QKNorm, Rotary
from hectogpt.training import precision, setup
from hectogpt.training.optim.adamw import RowAdamW
from hectogpt.training.session import Session

pytestmark = pytest.mark.skipif(
    not torch_private.has_avx512_bf16() or hardware.cpp_compiler_fault() is not None,
    reason="needs a processor with AVX512-BF16 and a C++ compiler",
)


@pytest.fixture(autouse=True)
def kernels():
    with native.using(True) as used:
        assert used
        yield


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("cap", [None, 15.0])
@pytest.mark.parametrize("vocab", [1003, 96, 7])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_loss_and_its_gradients_are_those_of_float64(vocab: int, cap: float | None, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(vocab)
    x, weight = (torch.randn(n, 32, generator=generator) for n in (50, vocab))
    tensors = [x, weight / 3, torch.randn(vocab, generator=generator)]
    target = torch.randint(vocab, (50,), generator=generator)
    mixture = Mixture(torch.rand(50, generator=generator), torch.rand(50, generator=generator) * 0.5)
    found: dict[str, list[Tensor]] = {}
    for backend, dtype in (("eager", torch.float64), ("native", torch.float32)):
        x, weight, bias = (t.to(dtype, copy=True).requires_grad_() for t in tensors)
        loss = fused_cross_entropy(
            *(x, weight, target),
            bias=bias if with_bias else None,
            soft_cap=cap,
            mixture=mixture,
            precision=torch.bfloat16 if backend == "native" else None,
            backend=backend,  # type: ignore[arg-type]
            chunk_rows=20,
        )
        loss.backward()
        found[backend] = [loss.detach(), x.grad, weight.grad] + ([bias.grad] if with_bias else [])
    for got, exact, allowed in zip(found["native"], found["eager"], (1e-4, 0.01, 0.01, 0.01), strict=False):
        assert distance(got, exact) < allowed


def test_a_row_of_the_head_may_be_absent() -> None:
    """A bias of minus infinity gives a token no probability."""
    x, weight = torch.ones(3, 4), torch.ones(5, 4, requires_grad=True)
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf])
    loss = fused_cross_entropy(x, weight, torch.tensor([0, 1, 2]), bias=bias, precision=torch.bfloat16)
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-6)
    assert weight.grad is not None
    assert not weight.grad[4].any()


@pytest.mark.parametrize(("time", "d"), [(1, 64), (16, 64), (70, 64), (191, 128)])
def test_attention_is_that_of_float64(time: int, d: int) -> None:
    generator = torch.Generator().manual_seed(time)
    # [batch, time, head, d] in memory, as the model has it
    tensors = [torch.randn(2, time, 3, d, generator=generator).bfloat16().transpose(1, 2) for _ in range(4)]
    *qkv, grad = tensors
    narrow, wide = ([t.detach().to(dtype).requires_grad_() for t in qkv] for dtype in (torch.bfloat16, torch.float64))
    got = native.causal_attention(*narrow, 0.1)
    exact = F.scaled_dot_product_attention(*wide, is_causal=True, scale=0.1)
    assert distance(got.detach(), exact.detach()) < 0.005
    got.backward(grad)
    exact.backward(grad.double())
    for ours, theirs in zip(narrow, wide, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        error = (ours.grad.double() - theirs.grad).norm()
        assert error < 0.01 * theirs.grad.norm() + 1e-3


def test_results_do_not_depend_on_threads_or_on_other_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, 70, 64, generator=generator).bfloat16() for _ in range(3))
    alone = native.causal_attention(q[1:2], k[1:2], v[1:2], 0.1)
    torch.set_num_threads(2)
    try:
        together = native.causal_attention(q, k, v, 0.1)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize(("d", "fraction"), [(64, 0.5), (64, 1.0), (128, 0.5), (64, 0.0)])
def test_norm_and_rotation_are_those_of_the_parts(d: int, fraction: float) -> None:
    generator = torch.Generator().manual_seed(d)
    x, grad = (torch.randn(2, 9, 3, d, generator=generator).bfloat16().transpose(1, 2) for _ in range(2))
    norm, rotary = QKNorm().build(3, d), Rotary(fraction=fraction).build(3, d)
    angles = rotary.prepare(torch.arange(9)[None])
    narrow, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    assert native.norm_rotate_fits(x.dtype, d, angles[0])
    got = native.norm_rotate(narrow, *angles, 1e-6)
    exact, _ = rotary(*norm(wide, wide, None), angles)
    got.backward(grad)
    exact.backward(grad.double())
    assert distance(got.detach(), exact.detach()) < 0.004
    assert distance(narrow.grad, wide.grad) < 0.004


@pytest.mark.parametrize("n", [1, 16, 5000])
def test_gelu_is_torchs(n: int) -> None:
    x = (torch.randn(n, generator=torch.Generator().manual_seed(n)) * 4).bfloat16()
    x[0] = -200.0
    narrow, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    got, exact = native.gelu(narrow), F.gelu(wide, approximate="tanh")
    got.sum().backward()
    exact.sum().backward()
    torch.testing.assert_close(got, exact.bfloat16(), rtol=0.01, atol=1e-6)
    torch.testing.assert_close(narrow.grad, wide.grad.bfloat16(), rtol=0.01, atol=1e-6)


@pytest.mark.parametrize(("threshold", "decay"), [(0.0, 0.0), (1.5, 0.0), (0.0, 0.1)])
def test_the_row_wise_adamw_is_that_of_torch(threshold: float, decay: float) -> None:
    found = []
    for wanted in (True, False):
        generator = torch.Generator().manual_seed(0)
        table = torch.nn.Parameter(torch.randn(20, 32, generator=generator))
        group = {"params": [table], "lr": 0.1, "weight_decay": decay, "eps": 1e-6}
        optimizer = RowAdamW([group | {"update_threshold": threshold, "highest_lr": 0.0}], (0.8, 0.95), 0.5)
        with native.using(wanted):
            for step in range(6):
                # rows 8 to 15 never have a gradient, the others not always
                table.grad = torch.randn(20, 32, generator=generator)
                table.grad[8:16] = 0.0
                table.grad[step : step + 3] = 0.0
                optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
                optimizer.step()
        found.append([table.detach(), *optimizer.state[table].values()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_no_second_derivatives() -> None:
    q = torch.randn(1, 1, 4, 64, dtype=torch.bfloat16, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(native.causal_attention(q, q, q, 1.0).sum(), q, create_graph=True)


def test_a_model_computes_the_same_with_and_without() -> None:
    parts = (QKNorm(), Rotary(fraction=0.5))
    config = ModelConfig(128, 2, 2, 64, 300, attention_parts=parts, value_embeddings=(TokenTable(),))
    model, ids = Transformer(config), torch.randint(300, (2, 33), generator=torch.Generator().manual_seed(0))
    model.init_weights(Init(), seed=0)  # the same at every call: some gradients are sums that may cancel
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    grads = []
    for wanted in (True, False):
        with native.using(wanted), torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(ids[:, :-1], ids[:, 1:], precision=torch.bfloat16)
        grads.append(torch.autograd.grad(loss, list(model.parameters())))
    for ours, theirs in zip(*grads, strict=True):
        assert distance(ours, theirs) < 0.02


def test_large_steps_in_bf16_use_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run(head_dtype="bfloat16")
    corpus = tiny_corpus(tmp_path)
    model = setup.build_model(run, precision.choose(run), corpus)
    assert setup.choose_head(run, model, precision.choose(run)) == "eager"
    assert setup.choose_head(run, model, precision.choose(run), "native") == "native"
    monkeypatch.setattr(setup, "NATIVE_FROM", 1)
    assert setup.choose_head(run, model, precision.choose(run)) == "native"
    assert setup.choose_head(run, model, precision.choose(run), "eager") == "eager"


def test_a_session_uses_them_for_its_own_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions whose steps alternate compute what they compute alone."""
    corpus, runs = tiny_corpus(tmp_path), [small_run(head_dtype=dtype) for dtype in ("bfloat16", "float32")]
    monkeypatch.setattr(setup, "NATIVE_FROM", 1)
    alone = [[step.loss for step in Session.open(run, corpus).steps()] for run in runs]
    sessions = [Session.open(run, corpus) for run in runs]
    assert [session.head for session in sessions] == ["native", "eager"]
    used = []
    with native.using(False):
        for steps in zip(*(session.steps() for session in sessions), strict=True):
            used.append([step.loss for step in steps])
            assert not native.in_use()
    assert [list(losses) for losses in zip(*used, strict=True)] == alone


def test_without_a_compiler_torch_does_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path))
    native.build.cache_clear()
    try:
        assert not native.use(True)
        with pytest.raises(ValueError, match=r"native\.use"):
            fused_cross_entropy(torch.ones(2, 4), torch.ones(3, 4), torch.tensor([0, 1]), backend="native")
    finally:
        native.build.cache_clear()
