"""What a run trains: values that make no sense are refused with the field's name, corpora fit, every "auto" is decided
once, first weights come from the run's seed alone, compiled code computes the same."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import TINY, shrunk, small_run
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab.recipes import recipe
from hectogpt.model import Transformer
from hectogpt.model.inputs import InputPart
from hectogpt.model.parts import Norm
from hectogpt.training import precision, setup
from hectogpt.training.run import Constant, Cosine, Data, LinearDecay, Run


def build(run: Run, corpus: Corpus) -> Transformer:
    return setup.build_model(run, precision.choose(run), corpus)


def test_a_corpus_that_does_not_fit_is_refused(corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size") as caught:
        setup.check_corpus(small_run(model=replace(TINY, vocab_size=1000)), corpus)
    assert caught.value.fix == "set model.vocab_size to 50257"
    long = replace(TINY, context_length=10**6)
    with pytest.raises(UserError, match="one row of a batch takes"):
        setup.check_corpus(small_run(model=long, data=Data(8, 10**6)), corpus)


@pytest.mark.parametrize("name", ["baseline", "top"])
def test_parameters_are_counted_without_building(corpus: Corpus, name: str) -> None:
    run = shrunk(recipe(name))
    assert setup.count_parameters(run, corpus) == sum(p.numel() for p in build(run, corpus).parameters())


# --- first weights ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn(InputPart):
    """A part that draws one weight in `init_weights(generator)`, and leaves others to nn.Linear, which draws them from
    torch's own generator when it is built."""

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return DrawnLayer(d_model)


class DrawnLayer(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.map = nn.Linear(d_model, d_model)
        self.scale = nn.Parameter(torch.full((d_model,), float("nan")))

    def init_weights(self, generator: torch.Generator) -> None:
        self.scale.copy_(torch.empty(self.scale.shape).normal_(1.0, 0.1, generator=generator))

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return self.scale * self.map(x)


def test_every_part_draws_its_first_weights_from_the_run_s_seed(corpus: Corpus) -> None:
    run = small_run(model=replace(TINY, inputs=(Drawn(), Drawn())))
    first = build(run, corpus).state_dict()
    torch.manual_seed(99)
    again, other = (build(replace(run, seed=seed), corpus).state_dict() for seed in (0, 1))
    own = [name for name in first if name.startswith("inputs.")]
    assert len(own) == 6
    assert all(value.isfinite().all() and torch.equal(value, again[name]) for name, value in first.items())
    assert all(name.endswith("bias") or not torch.equal(first[name], other[name]) for name in own)
    for name, value in build(small_run(), corpus).state_dict().items():
        assert torch.equal(value, first[name]), f"{name}: changed by the parts beside it"
    assert not torch.equal(*(first[name] for name in own if "scale" in name)), "each part has draws of its own"


# --- schedules --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(0, 40), st.floats(0, 0.9), st.floats(0, 1))
def test_schedules_stay_between_zero_and_one(steps: int, warmup: int, hold: float, final: float) -> None:
    for schedule in (Constant(), LinearDecay(warmup, hold, final), Cosine(warmup, final)):
        factors = [schedule.factor(step, steps) for step in range(steps)]
        assert all(0 <= f <= 1 + 1e-12 and math.isfinite(f) for f in factors)
        assert factors[0] > 0  # a first step at learning rate 0 is a step thrown away
        falling = factors[warmup:]
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))


def test_schedules_reach_their_marks() -> None:
    rising = LinearDecay(warmup=5)
    assert [rising.factor(step, 100) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rising.factor(99, 100) == pytest.approx(1 / 95)
    held = LinearDecay(hold=0.5)
    assert [held.factor(step, 100) for step in (0, 50, 75)] == pytest.approx([1.0, 1.0, 0.5])
    assert LinearDecay(final=0.1).factor(99, 100) == pytest.approx(0.1 + 0.9 / 100)
    cosine = Cosine(warmup=4, final=0.2)
    assert [cosine.factor(step, 104) for step in (0, 1, 2, 3, 4, 54)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.6])
    assert cosine.factor(103, 104) == pytest.approx(0.2, abs=1e-3)


# --- device, dtypes and threads ---------------------------------------------------------------------------------------


def test_absurd_sizes_are_refused_before_allocation() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="do not fit"):
        precision.check_memory(replace(TINY, d_model=10**5), cpu, Data(batch_size=1, seq_len=32))
    for rows in (2**40, 10**7):  # 389 GB, and 3 GB of ids
        with pytest.raises(UserError, match="at a time do not fit") as caught:
            precision.choose(small_run(data=Data(batch_size=rows, seq_len=32)))
        assert caught.value.fix.endswith("to fewer rows")
    precision.check_memory(TINY, cpu, Data(batch_size=64, seq_len=32))


def test_the_estimate_of_memory_is_a_lower_bound() -> None:
    """What the backward pass of a step keeps, counted by the bytes that autograd saves."""
    model = Transformer(TINY)
    saved: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 50257, (4, 32))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(ids)
    assert sum(saved.values()) > 4 * precision._bytes_per_row(TINY, 32, "float32")


def test_auto_is_decided_and_what_is_asked_for_is_given() -> None:
    machine = precision.choose(small_run(dtype="auto", head_dtype="auto"))
    assert machine.dtype == torch.float32  # so narrow a model gains nothing from bf16
    assert machine.head_dtype in (torch.float32, torch.bfloat16)
    assert (machine.device.type, machine.threads) == ("cpu", torch.get_num_threads()) == ("cpu", 1)
    assert precision.choose(small_run(dtype="bfloat16")).dtype == torch.bfloat16
    exact = precision.choose(small_run(dtype="float64", head_dtype="auto"))
    assert (exact.dtype, exact.head_dtype) == (torch.float64, torch.float64)


@pytest.mark.gpu
def test_auto_takes_the_gpu() -> None:
    machine = precision.choose(small_run(device="auto"))
    assert machine.device.type == "cuda"
    assert machine.describe()["device"] == torch.cuda.get_device_name()
