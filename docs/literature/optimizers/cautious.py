from dataclasses import dataclass, replace

import torch

from hectogpt import OptimizerGroup, Run, SOAPMuon, kinds


@dataclass(frozen=True)
class Cautious(SOAPMuon):
    """Entries of a matrix move only where the update agrees with the gradient, and then further."""

    def build(self, model):
        kind_of = kinds(model)
        group = CautiousGroup(super().build(model).optimizers)
        group.matrices = [p for name, p in model.named_parameters() if kind_of[name] == "matrix"]
        return group


class CautiousGroup(OptimizerGroup):
    def step(self, *args, **kwargs):
        before = [p.detach().clone() for p in self.matrices]
        super().step(*args, **kwargs)
        with torch.no_grad():
            for p, was in zip(self.matrices, before, strict=True):
                agrees = ((p - was) * p.grad < 0).to(p.dtype)
                p.copy_(was + (p - was) * agrees / agrees.mean().clamp(min=1e-3))


def cautious(run: Run) -> Run:
    """Entries whose update disagrees with the gradient stay where they are; the others move further.

    Source: Liang et al. 2024, 2411.16085.
    Claim: better; up to 1.47 times fewer steps for AdamW, and better with Lion, Muon and SOAP too.
    Expected: tie.
    """
    return replace(run, optim=Cautious(**vars(run.optim))) if isinstance(run.optim, SOAPMuon) else run
