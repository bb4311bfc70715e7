"""What a run trains: corpora that fit, first weights from the run's seed alone, compiled code where caches belong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import ROOT, TINY, small_run, tiny_corpus
from torch import Tensor, nn

from hectogpt import errors
from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab import recipes
from hectogpt.model import Transformer
from hectogpt.model.inputs import Cache, InputPart
from hectogpt.model.parts import Norm, QKPart
from hectogpt.training import precision, setup
from hectogpt.training.run import Data, Run

PROGRAMS = ROOT / "tests" / "programs"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("text"))


def build(run: Run, corpus: Corpus) -> Transformer:
    return setup.build_model(run, precision.choose(run), corpus)


def test_a_corpus_that_does_not_fit_is_refused(corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size") as caught:
        setup.check_corpus(small_run(model=replace(TINY, vocab_size=1000)), corpus)
    assert caught.value.code == errors.DATA
    assert caught.value.fix == "set model.vocab_size to 50257"
    long = replace(TINY, context_length=10**6)
    with pytest.raises(UserError, match="one row of a batch takes") as caught:
        setup.check_corpus(small_run(model=long, data=Data(8, 10**6)), corpus)
    assert caught.value.code == errors.DATA


@pytest.mark.parametrize("name", ["baseline", "top"])
def test_parameters_are_counted_without_building(corpus: Corpus, name: str) -> None:
    run = recipes.recipe(name)
    run = replace(run, model=replace(run.model, d_model=16, n_heads=2), device="cpu", threads=1)
    assert setup.count_parameters(run, corpus) == sum(p.numel() for p in build(run, corpus).parameters())


# --- first weights ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrawnScale(QKPart):
    """A part whose weights come from `init_weights(generator)`."""

    def build(self, n_heads: int, d_head: int) -> nn.Module:
        return DrawnScaleLayer(d_head)


class DrawnScaleLayer(nn.Module):
    def __init__(self, d_head: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((d_head,), float("nan")))

    def init_weights(self, generator: torch.Generator) -> None:
        self.scale.copy_(torch.empty(self.scale.shape).normal_(1.0, 0.1, generator=generator))

    def forward(self, q: Tensor, k: Tensor, prepared: object) -> tuple[Tensor, Tensor]:
        return q * self.scale, k


@dataclass(frozen=True)
class LinearMap(InputPart):
    """A part that leaves its weights to nn.Linear, which draws them from torch's own generator when it is built."""

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return LinearMapLayer(d_model)


class LinearMapLayer(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.map = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, ids: Tensor, cache: Cache | None = None) -> Tensor:
        return x + self.map(x)


WITH_PARTS = replace(TINY, attention_parts=(DrawnScale(),), inputs=(LinearMap(),))


def test_every_part_draws_its_first_weights_from_the_run_s_seed(corpus: Corpus) -> None:
    run = small_run(model=WITH_PARTS)
    first = build(run, corpus).state_dict()
    torch.manual_seed(99)
    torch.randn(7)
    again = build(run, corpus).state_dict()
    other = build(replace(run, seed=1), corpus).state_dict()
    plain = build(small_run(), corpus).state_dict()
    own = [name for name in first if "qk_parts" in name or name.startswith("inputs.")]
    assert len(own) == 4  # a scale in each layer, weight and bias of the map
    for name, value in first.items():
        assert value.isfinite().all(), name
        assert torch.equal(value, again[name]), name
    for name in own:
        assert name.endswith("bias") or not torch.equal(first[name], other[name]), name
    for name, value in plain.items():
        assert torch.equal(value, first[name]), f"{name}: changed by the parts beside it"
    scales = [first[name] for name in own if "qk_parts" in name]
    assert not torch.equal(*scales), "each layer has draws of its own"


# --- compiled code ------------------------------------------------------------------------------------------------


def run_program(name: str, *arguments: object, **environment: str) -> list[str]:
    command = [sys.executable, str(PROGRAMS / name), *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_blocks_compute_the_same(corpus: Corpus) -> None:
    (difference,) = run_program("compiled_run.py", corpus.name)
    assert float(difference) < 1e-4
