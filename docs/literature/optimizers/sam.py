from dataclasses import dataclass, replace

import torch

from hectogpt import AdamW, Muon, Optim, OptimizerGroup, Run, kinds


def _rest_of(run: Run) -> AdamW:
    """The AdamW of everything that is no matrix."""
    return run.optim.rest if isinstance(run.optim, Muon) else AdamW()


@dataclass(frozen=True)
class ForMatrices(Optim):
    """An optimizer for the matrices of the blocks; `rest` takes embeddings, tables, head, gains and biases."""

    rest: AdamW
    lr: float = 0.003

    def build(self, model):
        kind_of = kinds(model)  # the name of every parameter -> "matrix", "embedding", "head", ...
        matrices = [p for name, p in model.named_parameters() if kind_of[name] == "matrix"]
        others = {name for name in kind_of if kind_of[name] != "matrix"}
        return OptimizerGroup([self.optimizer(matrices), *self.rest.optimizers(model, others)])


class SAMOptimizer(torch.optim.AdamW):
    def step(self, closure):  # type: ignore[override]
        """A closure without a default is asked for: it computes the batch's gradients again."""
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.detach().clone() for p in weights]
        norm = torch.stack([p.grad.norm() for p in weights]).norm()
        with torch.no_grad():
            for p in weights:
                p.add_(p.grad, alpha=0.05 / float(norm + 1e-12))
        closure()
        with torch.no_grad():
            for p, was in zip(weights, before, strict=True):
                p.copy_(was)
        super().step()


@dataclass(frozen=True)
class SAM(ForMatrices):
    """Sharpness-aware minimisation: the gradient of the worst point near by."""

    def optimizer(self, matrices):
        return SAMOptimizer(matrices, lr=self.lr, betas=(0.8, 0.95), weight_decay=0.0)


def sam(run: Run) -> Run:
    """AdamW for the matrices with the gradient at the worst point near by. Two passes a step.

    Source: Foret et al. 2020, 2010.01412; language models, Bahri et al. 2021, 2110.08529.
    Claim: better; T5 fine-tuned on small data. It says nothing about one pass over the text.
    Expected: worse, 0.05.
    """
    return replace(run, optim=SAM(_rest_of(run), lr=0.005))
