"""Laws of the fused head: equal to plain cross entropy in value and in every gradient, whatever the shape."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt.errors import DATA, UserError
from hectogpt.model.head import fastest_precision, head_loss, prepare
from hectogpt.model.shared_head import shared_head_loss, used_vocabulary

# Relative norm of the difference: float64, float32, and float32 with bf16 products (loss, gradients).
LIMITS = {None: {torch.float64: (1e-12, 1e-12), torch.float32: (1e-6, 2e-6)}, torch.bfloat16: (1e-3, 1e-2)}


def plain(x, weight, targets, bias=None, cap=None, share=None, smoothing=0.0, reduction="mean"):
    """The textbook: all logits, then F.cross_entropy."""
    z = x.flatten(0, -2) @ weight.t()
    z = z if cap is None else cap * torch.tanh(z / cap)
    z = z if bias is None else z + bias
    target = targets.flatten()
    if share is None:
        return F.cross_entropy(z, target, label_smoothing=smoothing, reduction=reduction)
    rows = F.cross_entropy(z, target, label_smoothing=smoothing, reduction="none")
    share = share.flatten().to(z.dtype) * (target != -100)
    total = (rows * share).sum()
    return total / share.sum() if reduction == "mean" else total


def problem(rows, vocab, d, dtype, seed, spread=1.0):
    """Random hidden states, head, bias and targets; logits have a standard deviation of `spread`."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d, generator=g, dtype=dtype)
    weight = torch.randn(vocab, d, generator=g, dtype=dtype) * (spread / math.sqrt(d))
    bias = torch.randn(vocab, generator=g, dtype=dtype)
    targets = torch.randint(vocab, (rows,), generator=g)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), targets


def apart(a, b):
    """Relative norm of a - b; an exact zero is compared absolutely."""
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 19),
    vocab=st.integers(2, 70),
    d=st.integers(1, 9),
    chunk=st.one_of(st.none(), st.integers(1, 8)),
    dtype=st.sampled_from((torch.float64, torch.float32)),
    with_bias=st.booleans(),
    cap=st.sampled_from((None, 2.0, 15.0)),
    smoothing=st.sampled_from((0.0, 0.1)),
    weighted=st.booleans(),
    ignored=st.booleans(),
    reduction=st.sampled_from(("mean", "sum")),
    seed=st.integers(0, 99),
)
def test_fused_is_plain(rows, vocab, d, chunk, dtype, with_bias, cap, smoothing, weighted, ignored, reduction, seed):
    x, weight, bias, targets = problem(rows, vocab, d, dtype, seed, spread=3.0)
    if ignored and rows > 1:
        targets[1::3] = -100
    share = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) + 0.1 if weighted else None
    bias = bias if with_bias else None
    inputs = [x, weight] + ([bias] if with_bias else [])
    want = plain(x, weight, targets, bias, cap, share, smoothing, reduction)
    got = head_loss(
        x, weight, targets, bias=bias, soft_cap=cap, token_weights=share, label_smoothing=smoothing,
        reduction=reduction, chunk_rows=chunk, backend="eager",
    )  # fmt: skip
    near, near_grad = LIMITS[None][dtype]
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=near, atol=near)
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=near_grad * max(float(b.norm()), rows**0.5 / rows))


@pytest.mark.parametrize("options", [{}, {"soft_cap": 3.0}, {"soft_cap": 3.0, "label_smoothing": 0.2}])
def test_gradcheck(options):
    x, weight, bias, targets = problem(7, 11, 4, torch.float64, 1)
    targets[2] = -100
    assert torch.autograd.gradcheck(
        lambda x, w, b: head_loss(x, w, targets, bias=b, chunk_rows=3, **options), (x, weight, bias)
    )


@pytest.mark.parametrize("spread", [0.3, 2.0, 5.0])
@pytest.mark.parametrize("cap", [None, 15.0])
def test_bf16_products_stay_within_limits(spread, cap):
    x, weight, bias, targets = problem(300, 2000, 33, torch.float32, 2, spread)
    with torch.no_grad():  # a log-unigram prior: a wide bias, where a rounded logit would cost most
        bias.copy_(-torch.log(torch.arange(1, 2001).float()) - 2.1)
    want = plain(x, weight, targets, bias, cap)
    got = head_loss(x, weight, targets, bias=bias, soft_cap=cap, precision=torch.bfloat16, chunk_rows=128)
    assert got.dtype == torch.float32
    assert abs(got - want) <= 1e-3 * want
    inputs = (x, weight, bias)
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        assert apart(a, b) <= 1e-2


def test_bf16_sum_does_not_stall():
    """A running bf16 sum would stop growing long before 20,000 equal terms."""
    x = torch.zeros(20_000, 4, dtype=torch.bfloat16)
    loss = head_loss(x, torch.zeros(64, 4, dtype=torch.bfloat16), torch.zeros(20_000, dtype=torch.long))
    assert loss.dtype == torch.float32
    assert abs(loss.item() - math.log(64)) < 1e-5


def test_confident_rows_keep_a_gradient():
    """p near 1 in bf16 products: the loss stays >= 0 and p - 1 is not rounded away."""
    x, weight, _, _ = problem(50, 300, 32, torch.float32, 3, spread=6.0)
    targets = (x @ weight.t()).argmax(1)
    want = plain(x, weight, targets)
    got = head_loss(x, weight, targets, precision=torch.bfloat16)
    assert got > 0
    a, b = (torch.autograd.grad(loss, weight)[0] for loss in (got, want))
    assert apart(a, b) <= 3e-2


def test_tied_weight():
    """x made from the same table: both paths of the gradient add up."""
    _, table, _, targets = problem(12, 30, 6, torch.float64, 4)
    ids = torch.arange(12)
    want = torch.autograd.grad(plain(torch.tanh(table[ids]), table, targets), table)[0]
    got = torch.autograd.grad(head_loss(torch.tanh(table[ids]), table, targets), table)[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_backward_twice_and_scaled():
    x, weight, bias, targets = problem(9, 20, 5, torch.float64, 5)
    loss = head_loss(x, weight, targets, bias=bias)
    once = torch.autograd.grad(loss, (x, weight, bias), retain_graph=True)
    again = torch.autograd.grad(loss * 3, (x, weight, bias), retain_graph=True)
    third = torch.autograd.grad(loss, (x, weight, bias))
    for a, b, c in zip(once, again, third, strict=True):
        torch.testing.assert_close(3 * a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_only_wanted_gradients(which):
    x, weight, bias, targets = problem(9, 20, 5, torch.float64, 6)
    inputs = {"x": x, "weight": weight, "bias": bias}
    for name, tensor in inputs.items():
        tensor.requires_grad_(name == which)
    want = torch.autograd.grad(plain(x, weight, targets, bias), inputs[which])[0]
    head_loss(x, weight, targets, bias=bias).backward()
    torch.testing.assert_close(inputs[which].grad, want, rtol=1e-12, atol=1e-14)
    assert all(t.grad is None for name, t in inputs.items() if name != which)


def test_evaluation_makes_no_gradient():
    x, weight, bias, targets = problem(40, 500, 64, torch.float32, 7)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as prof:
        loss = head_loss(x, weight, targets, bias=bias, chunk_rows=8)
    assert loss.grad_fn is None
    torch.testing.assert_close(loss, plain(x, weight, targets, bias).detach())
    products = sum(e.count for e in prof.key_averages() if e.key in ("aten::mm", "aten::addmm_"))
    assert products == 5  # one per chunk: the logits, and no other matrix product


def test_leading_shape_is_free():
    x, weight, _, targets = problem(24, 20, 5, torch.float64, 8)
    flat = head_loss(x, weight, targets)
    shaped = head_loss(x.view(2, 3, 4, 5), weight, targets.view(2, 3, 4))
    assert torch.equal(flat, shaped)


def test_nan_is_never_hidden():
    x, weight, _, targets = problem(8, 20, 5, torch.float32, 9)
    with torch.no_grad():
        x[3, 2] = math.nan
    for precision in (None, torch.bfloat16):
        loss = head_loss(x, weight, targets, precision=precision)
        loss.backward()
        assert loss.isnan()
        assert x.grad[3].isnan().any()
        assert weight.grad.isnan().any()


def test_all_ignored():
    x, weight, _, targets = problem(4, 20, 5, torch.float32, 10)
    targets.fill_(-100)
    with pytest.raises(UserError, match="no target") as caught:
        head_loss(x, weight, targets)
    assert caught.value.code == DATA
    loss = head_loss(x, weight, targets, reduction="sum")
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize("bad", [-1, 20])
def test_target_outside_the_vocabulary_is_named(bad):
    x, weight, _, targets = problem(4, 20, 5, torch.float32, 11)
    targets[2] = bad
    with pytest.raises(UserError, match=f"target id {bad} at flat position 2"):
        head_loss(x, weight, targets)


def test_huge_logits():
    """Row maxima are subtracted: logits of a thousand overflow nothing."""
    x, weight, _, targets = problem(8, 20, 5, torch.float64, 12, spread=1000.0)
    torch.testing.assert_close(head_loss(x, weight, targets), plain(x, weight, targets), rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised inside torch.compile
@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_compiled_is_plain(precision, cap, with_bias):
    """Chunks that do not divide, a last chunk of one row, ignored targets; nothing is compiled twice."""
    assert prepare(1003, precision=precision, soft_cap=cap, bias=with_bias) is not None
    x, weight, bias, targets = problem(50, 1003, 33, torch.float32, 13, spread=2.0)
    targets[3] = -100
    bias = bias if with_bias else None
    inputs = [x, weight] + ([bias] if with_bias else [])
    want = plain(x, weight, targets, bias, cap)
    near, near_grad = (1e-6, 2e-6) if precision == torch.float32 else LIMITS[torch.bfloat16]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for chunk in (7, 49, None):
            got = head_loss(
                x, weight, targets, bias=bias, soft_cap=cap, precision=precision, chunk_rows=chunk,
                backend="compiled",
            )  # fmt: skip
            assert abs(got - want) <= near * want
            for a, b in zip(
                torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs, retain_graph=True), strict=True
            ):
                assert apart(a, b) <= near_grad


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised inside torch.compile
@pytest.mark.slow
def test_without_a_compiler_prepare_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}):
        assert prepare(77) is None
    x, weight, _, targets = problem(4, 77, 5, torch.float32, 14)
    assert head_loss(x, weight, targets).isfinite()


def test_compiled_must_be_prepared():
    x, weight, _, targets = problem(4, 21, 5, torch.float32, 15)
    with pytest.raises(ValueError, match="prepare"):
        head_loss(x, weight, targets, backend="compiled")


@pytest.mark.parametrize("rows", [16, 256])
def test_float32_products_are_float32(rows):
    """The detour through oneDNN, which asks for permission to round to bf16, does not round here."""
    x, weight, _, targets = problem(rows, 4096, 128, torch.float32, 16, spread=4.0)
    want = plain(x.double(), weight.double(), targets)
    before = torch.backends.mkldnn.matmul.fp32_precision
    got = head_loss(x, weight, targets)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    for a, b in zip(torch.autograd.grad(got, (x, weight)), torch.autograd.grad(want, (x, weight)), strict=True):
        assert apart(a, b) <= 2e-6


def test_fastest_precision_is_one_of_two():
    assert fastest_precision(33, 1000) in (torch.bfloat16, torch.float32)


@settings(max_examples=30, deadline=None)
@given(
    vocab=st.integers(2, 60),
    rows=st.integers(1, 12),
    cap=st.sampled_from((None, 3.0)),
    with_bias=st.booleans(),
    weighted=st.booleans(),
    reduction=st.sampled_from(("mean", "sum")),
    seed=st.integers(0, 99),
)
def test_shared_row_is_the_expanded_head(vocab, rows, cap, with_bias, weighted, reduction, seed):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab, (max(1, vocab // 2),), generator=g)
    used, row = used_vocabulary(tokens, vocab)
    x, weight, bias, targets = problem(rows, len(used) + 1, 4, torch.float64, seed)
    targets = torch.randint(vocab, (rows,), generator=g)
    if rows > 2:
        targets[1] = -100
    bias = bias if with_bias else None
    share = torch.rand(rows, generator=g) + 0.1 if weighted else None
    inputs = [x, weight] + ([bias] if with_bias else [])
    want = plain(x, weight[row], targets, None if bias is None else bias[row], cap, share, reduction=reduction)
    got = shared_head_loss(x, weight, targets, row, bias=bias, soft_cap=cap, token_weights=share, reduction=reduction)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_shared_row_probabilities_sum_to_one():
    """Over all 50,257 ids, of which 300 are in use."""
    g = torch.Generator().manual_seed(17)
    used, row = used_vocabulary(torch.randint(50257, (300,), generator=g), 50257)
    x, weight, _, _ = problem(1, len(used) + 1, 8, torch.float64, 17)
    ids = torch.arange(50257)
    with torch.no_grad():
        scores = torch.log_softmax(x @ weight[row].t(), 1)[0]
        for some in (used[:3], ids[row == len(used)][:3]):
            loss = shared_head_loss(x.expand(3, -1), weight, some, row, reduction="sum")
            torch.testing.assert_close(loss, -scores[some].sum(), rtol=1e-12, atol=0)
        mine = torch.exp(-torch.stack([
            shared_head_loss(x, weight, torch.tensor([i]), row) for i in (*used.tolist(), int(ids[row == len(used)][0]))
        ]))  # fmt: skip
    assert abs(mine[:-1].sum() + mine[-1] * (50257 - len(used)) - 1) < 1e-12


def test_every_word_in_use_leaves_the_shared_row_empty():
    used, row = used_vocabulary(torch.arange(9), 9)
    x, weight, _, targets = problem(5, 10, 4, torch.float64, 18)
    targets = targets % 9
    assert len(used) == 9
    torch.testing.assert_close(shared_head_loss(x, weight, targets, row), plain(x, weight[:9], targets))
