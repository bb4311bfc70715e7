"""`diagnose` names the module in which numbers stop being finite, and the text that does it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import small_run, tiny_corpus
from torch import Tensor, nn

from hectogpt.data import Corpus
from hectogpt.training import setup
from hectogpt.training.diagnose import diagnose
from hectogpt.training.session import Session

HUGE = 3e38  # finite in float32; sums of it are not


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("text"))


def begun(corpus: Corpus) -> Session:
    session = Session.open(small_run(), corpus)
    for step in session.steps():
        if step.number == 2:
            return session
    raise AssertionError


def fill(name: str) -> Callable[[Session], None]:
    """Make a weight so large that the output of its module is not finite."""

    def poison(session: Session) -> None:
        with torch.no_grad():
            weight = dict(session.model.named_parameters())[name]
            weight.copy_(HUGE * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).sign())

    return poison


def only_backward(session: Session) -> None:
    """Finite outputs whose gradient is not."""

    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient * float("nan")

    class BadActivation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = Bad.apply(x)
            return found

    session.model.backbone[1].mlp.activation = BadActivation()


@pytest.mark.parametrize(
    ("poison", "stage", "module"),
    [
        (fill("backbone.0.mlp.fc1.weight"), "forward", "backbone.0.mlp.fc1"),
        (fill("backbone.1.attention.W_qkv.weight"), "forward", "backbone.1.attention.W_qkv"),
        (fill("lm_head.weight"), "forward", "lm_head (the loss)"),
        (fill("position_embeddings.weight"), "forward", "backbone.0.pre_layer_norm"),
        (only_backward, "backward", "backbone.1.mlp.fc1"),
    ],
)
def test_the_first_bad_module_is_named(
    corpus: Corpus, poison: Callable[[Session], None], stage: str, module: str
) -> None:
    session = begun(corpus)
    poison(session)
    before = [p.clone() for p in session.model.parameters()]
    found = diagnose(session)
    assert (found.stage, found.module, found.step) == (stage, module, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, session.model.parameters(), strict=True))
    assert all(p.grad is None for p in session.model.parameters())


def test_the_text_is_named(corpus: Corpus) -> None:
    """A token that stands in one row of the batch alone makes that row's loss infinite."""
    session, row = begun(corpus), 3
    batches = setup.make_batches(session.run, corpus)
    batch = batches.at(2)
    others = set(batch[[r for r in range(8) if r != row]].ravel().tolist())
    (token, *_) = [token for token in batch[row, :-1].tolist() if token not in others]
    with torch.no_grad():
        session.model.embeddings.weight[token] = HUGE
    found = diagnose(session)
    assert found.rows == (row,)
    sequence = found.sequences[0]
    assert (corpus.train[sequence * 32 : (sequence + 1) * 32] == batch[row]).all()


def test_a_step_that_is_well_has_no_bad_module(corpus: Corpus) -> None:
    session = begun(corpus)
    found = diagnose(session)
    assert (found.stage, found.module) == (None, None)
    step = next(iter(session.steps()))
    assert (found.loss, found.grad_norm) == (step.loss, step.grad_norm)
    assert list(found.row_losses) == sorted(found.row_losses, reverse=True)
