"""The C++ kernels: near float64 in every form, the same for any number of threads, and never in the way."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import fused_loss, small_run
from torch import Tensor

from hectogpt.data import Corpus
from hectogpt.kernels import build, native
from hectogpt.kernels.build import check_library, compile_library
from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.model.attention import CausalAttention
from hectogpt.model.inputs import TokenTable
from hectogpt.model.lm_head import LMHeadConfig
from hectogpt.model.parts import QKNorm, Rotary
from hectogpt.model.pointer import PointerHead
from hectogpt.training import precision, setup

FORMS = build.forms()
if build.find().library is None:
    pytest.skip(f"no kernels here: {build.describe()}", allow_module_level=True)
ALLOWED = {torch.float32: 5e-6, torch.bfloat16: 0.012}  # relative errors of gradients
both = pytest.mark.parametrize("dtype", ALLOWED)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


# --- every form against float64 ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("width", [None, 4, 16])
@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_every_form_is_near_float64_at_every_width(form: build.Form, width: int | None) -> None:
    """check.cpp compares all kernels, forward and backward; a wide form also runs on a narrower processor."""
    check_library(build.compiled(form, *([] if width is None else [f"-DWIDTH={width}"])))


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [form for form in build.FORMS if form.machine == "aarch64"], ids=lambda form: form.name
)
def test_arm_is_near_float64(form: build.Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for ARM and run by qemu; Debian: apt-get install g++-aarch64-linux-gnu qemu-user."""
    cross, emulator = "aarch64-linux-gnu-g++", shutil.which("qemu-aarch64")
    if emulator is None or shutil.which(cross) is None:
        pytest.skip(f"needs {cross} and qemu-aarch64")
    monkeypatch.setenv("CXX", cross)
    options = [option for option in build.OPTIONS if option not in ("-shared", "-fPIC")]
    compile_library(build.sources(), tmp_path / "check", [*options, *form.options, "-static", "-DMAIN"])
    done = subprocess.run([emulator, str(tmp_path / "check")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 24


# --- as torch operations ----------------------------------------------------------------------------------------------


def test_a_row_of_the_head_may_be_absent() -> None:
    """A bias of minus infinity gives a token no probability."""
    x, weight = torch.ones(3, 4), torch.ones(5, 4, requires_grad=True)
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf])
    loss = fused_loss(x, weight, torch.tensor([0, 1, 2]), bias=bias, precision=torch.bfloat16, kernels=True)
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-6)
    assert weight.grad is not None
    assert not weight.grad[4].any()


def test_all_logits_may_be_far_below_zero() -> None:
    loss = fused_loss(torch.ones(1, 4), torch.full((301, 4), -99.0), torch.tensor([3]), soft_cap=1e3, kernels=True)
    assert loss.item() == pytest.approx(math.log(301), abs=1e-4)


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


def test_no_second_derivatives() -> None:
    q = torch.randn(1, 1, 4, 64, dtype=torch.bfloat16, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(native.causal_attention(q, q, q, 1.0).sum(), q, create_graph=True)


@both
@pytest.mark.parametrize("document_start", [None, 7])
def test_a_model_computes_the_same_with_and_without(document_start: int | None, dtype: torch.dtype) -> None:
    parts = (QKNorm(), Rotary(fraction=0.5))
    config = ModelConfig(128, 2, 2, 200, 300, attention_parts=parts, value_embeddings=(TokenTable(),))
    head = LMHeadConfig(bias=True, soft_cap=15.0)
    pointer = PointerHead() if dtype == torch.float32 else None  # the gradient of its gate is a sum that cancels
    model = Transformer(replace(config, lm_head=head, pointer=pointer, document_start=document_start))
    ids = torch.randint(300, (2, 151), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    ids[0, ::37] = ids[1, 140] = 7
    model.init_weights(Init(), seed=0)  # the same at every call: some gradients are sums that may cancel
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    grads = []
    for wanted in (True, False):
        model.use_kernels(wanted)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            loss = model.loss(ids[:, :-1], ids[:, 1:], precision=dtype)
        grads.append(torch.autograd.grad(loss, list(model.parameters())))
    for ours, theirs in zip(*grads, strict=True):
        assert distance(ours, theirs) < (0.02 if dtype == torch.bfloat16 else 1e-4)


def test_what_does_not_fit_is_left_to_torch() -> None:
    """More keys than queries, and tensors on other devices."""
    attention = CausalAttention(0, ModelConfig(64, 4, 1, 9, 5))
    attention.kernels = True
    q, k = torch.randn(1, 4, 9, 16), torch.randn(1, 4, 12, 16)
    expected = F.scaled_dot_product_attention(q, k, k, is_causal=True)
    torch.testing.assert_close(attention.attend(q, k, k, None, True), expected)
    assert not native.norm_rotate_fits(torch.float32, 64, torch.ones(1, 1, 5, 32, device="meta"))


def test_large_steps_use_them(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    run, machine = small_run(), precision.choose(small_run())
    model = setup.build_model(run, machine, corpus)
    for least, chosen, wanted in ((setup.NATIVE_FROM, "eager", "native"), (1, "native", "eager")):
        monkeypatch.setattr(setup, "NATIVE_FROM", least)
        assert setup.choose_kernels(run, model, machine) == chosen
        assert setup.choose_kernels(run, model, machine, wanted) == wanted


# --- faults: each ends in the next form, with its reason --------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, no library from before, and a folder for prebuilt ones."""
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "PREBUILT", tmp_path)
    build.find.cache_clear()
    yield tmp_path
    build.find.cache_clear()


BROKEN = "echo 'error: out of order' >&2; exit 1"
EMPTY = 'while [ "$1" != -o ]; do shift; done; echo nothing > "$2"'  # says that all is well


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (None, "there is no program"),
        (BROKEN, "failed: error: out of order"),
        (EMPTY, "it cannot be loaded"),
        ("sleep 60", "did not finish within"),
    ],
)
def test_a_compiler_that_is_missing_wrong_or_slow_leaves_torch(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, compiler: str | None, reason: str
) -> None:
    path = elsewhere / "compiler"
    if compiler is not None:
        path.write_text(f"#!/bin/sh\n{compiler}\n")
        path.chmod(0o755)
    monkeypatch.setattr(build, "SECONDS", 0.2 if reason.startswith("did not") else build.SECONDS)
    monkeypatch.setenv("CXX", str(path))
    assert build.find().library is None
    assert build.describe().startswith("none; ")
    assert reason in build.describe()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("int check(int print) { __builtin_trap(); }", "ended by signal 4"),  # a processor that lies, in a container
        ("int check(int print) { return 3; }", "3 of its kernels"),
        (None, "it cannot be loaded"),  # made for another processor, or on a disk that forbids execution
    ],
)
def test_a_prebuilt_library_that_does_not_run_gives_way(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, code: str | None, reason: str
) -> None:
    best, path = FORMS[0], elsewhere / f"{FORMS[0].name}.so"
    if code is None:
        path.write_bytes(b"\x7fELF and no more")
    else:
        source = elsewhere / "wrong.cpp"
        source.write_text(f'extern "C" {code}')
        compile_library([source], path, ["-w", "-shared", "-fPIC"])
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.find().library is None
    assert f"{best.name}: " in build.describe()
    assert reason in build.describe()


def test_a_library_that_is_not_as_it_was_checked_is_compiled_again(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the cache, whatever was done to it; one that is whole is used as it is."""
    source, sound, compiler = elsewhere / "right.cpp", elsewhere / "sound", elsewhere / "compiler"
    source.write_text('extern "C" int check(int print) { return 0; }')
    compile_library([source], sound, ["-w", "-shared", "-fPIC"])
    compiler.write_text(f'#!/bin/sh\necho once >> {elsewhere}/times\nfor last; do :; done; cp {sound} "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    content = sound.read_bytes()
    flipped = content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]
    for spoiling in (content, content, content[: len(content) // 2], b"", flipped, content[:-99] + bytes(99)):
        build.compiled(FORMS[0]).write_bytes(spoiling)
    assert build.compiled(FORMS[0]).read_bytes() == content
    assert [path.suffix for path in (elsewhere / "cache" / "kernels").iterdir()] == [".so"]
    assert len((elsewhere / "times").read_text().split()) == 5


def test_a_prebuilt_library_is_used_without_a_cache_folder(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, form = elsewhere / "right.cpp", build.forms()[0]
    source.write_text('extern "C" int check(int print) { return 0; }')
    compile_library([source], elsewhere / f"{form.name}.so", ["-w", "-shared", "-fPIC"])
    monkeypatch.setenv("HECTOGPT_CACHE", "~nobody-of-this-name/cache")
    assert build.describe() == f"{form.name}, came with the package"
