"""What is minimised: a user's loss is the textbook's of the same logits; what is reported is plain cross entropy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from experiments import small_run
from helpers import train
from model_kinds import KINDS, build, random_ids

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.training.losses import CrossEntropy, Loss, Predictions


@dataclass(frozen=True)
class HalfLoss(Loss):
    by: float = 0.5

    def total(self, predictions: Predictions) -> torch.Tensor:
        return self.by * predictions.sum(lambda logits, targets: F.cross_entropy(logits, targets, reduction="none"))


@dataclass(frozen=True)
class PerToken(Loss):
    def total(self, predictions: Predictions) -> torch.Tensor:
        return predictions.hidden.sum(-1)


@pytest.mark.parametrize("kind", ["gpt2", "embedding map", "pointer", "everything else"])
def test_sums_are_those_of_the_logits(kind: str) -> None:
    model = build(KINDS[kind])
    ids = random_ids(3, 9)
    made = Predictions(model, ids[:, :-1], ids[:, 1:])
    logits, targets = model(ids[:, :-1]), ids[:, 1:]
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    assert made.plain.item() == pytest.approx(each.sum().item())
    weights = torch.rand(3, 8, dtype=torch.float64)
    found = [made.cross_entropy(weights), made.cross_entropy(ahead=2)]
    further = F.cross_entropy(logits[:, :-2].transpose(1, 2), targets[:, 2:], reduction="sum")
    for ours, theirs in zip(found, [(weights * each).sum(), further], strict=True):
        assert ours.item() == pytest.approx(theirs.item())
        gradients = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in (ours, theirs)]
        for a, b in zip(*gradients, strict=True):
            assert torch.allclose(a, b, atol=1e-9)
    if model.pointer is None:
        smooth = made.sum(lambda logits, targets, w: -w * logits.log_softmax(-1).mean(-1), weights)
        assert smooth.item() == pytest.approx(-(weights * logits.log_softmax(-1).mean(-1)).sum().item(), rel=1e-5)
    assert made.plain.item() == pytest.approx(each.sum().item()), "further losses leave it"


def test_a_loss_trains_and_the_plain_one_is_reported(corpus: Corpus) -> None:
    run = replace(
        small_run(), gradient_clipping=None, data=replace(small_run().data, leaves=small_run().data.batch_size)
    )
    plain, halved = train(run, corpus), train(replace(run, loss=HalfLoss()), corpus)
    assert halved.losses[0] == plain.losses[0]
    assert halved.grad_norms[0] == pytest.approx(plain.grad_norms[0] / 2, rel=1e-4)
    assert halved.losses == pytest.approx(plain.losses, abs=1e-3), "Adam does not see the factor"
    assert train(replace(run, loss=CrossEntropy()), corpus).losses == plain.losses
    with pytest.raises(UserError, match=r"loss: PerToken.total returned of shape \(1, 15\)"):
        train(replace(run, loss=PerToken()), corpus)
