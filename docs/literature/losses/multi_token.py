from dataclasses import dataclass, replace

import torch

from hectogpt import Loss, Predictions, Run


@dataclass(frozen=True)
class Ahead(Loss):
    """Also the token after the next, by the same head, less and less."""

    weight: float = 0.5

    def total(self, predictions: Predictions) -> torch.Tensor:
        later = self.weight * (1 - predictions.progress)
        return predictions.cross_entropy() + later * predictions.cross_entropy(ahead=1)


def multi_token(run: Run) -> Run:
    """The same head also predicts the token after the next, with a weight that falls to zero.

    Source: Gloeckle et al. 2024, 2404.19737.
    Claim: better; more programs solved at 7B and 13B. Small models got worse.
    Expected: worse, 0.02.
    """
    return replace(run, loss=Ahead())
