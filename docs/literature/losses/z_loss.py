from dataclasses import dataclass, replace

import torch

from hectogpt import Loss, Predictions, Run


@dataclass(frozen=True)
class ZLoss(Loss):
    """The logarithm of the softmax's denominator is pulled to 0."""

    weight: float = 1e-4

    def total(self, predictions: Predictions) -> torch.Tensor:
        return predictions.cross_entropy() + self.weight * predictions.sum(self.log_z_squared)

    def log_z_squared(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits.logsumexp(-1).square()


def z_loss(run: Run) -> Run:
    """0.0001 times the square of log Z is added.

    Source: Chowdhery et al. 2022 (PaLM), 2204.02311.
    Claim: tie; more stable for large models.
    Expected: tie.
    """
    return replace(run, loss=ZLoss())
