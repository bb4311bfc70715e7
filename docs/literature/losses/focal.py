from dataclasses import dataclass, replace

import torch

from hectogpt import Loss, Predictions, Run


@dataclass(frozen=True)
class Focal(Loss):
    """Tokens weigh (1 - p)^power, p being what the model gives them already."""

    power: float = 1.0

    def total(self, predictions: Predictions) -> torch.Tensor:
        with torch.no_grad():
            ids, targets = predictions.ids, predictions.targets
            each = predictions.model.losses_of(predictions.hidden, ids, targets, reduction="sum")[1]
        return predictions.cross_entropy((1 - (-each).exp()) ** self.power)


def focal(run: Run) -> Run:
    """Tokens that the model predicts well weigh less.

    Source: Lin et al. 2017, 1708.02002.
    Claim: better for rare classes in detection; as a language model's loss it is not proper.
    Expected: worse, 0.01.
    """
    return replace(run, loss=Focal())
