from dataclasses import dataclass, replace

import torch

from hectogpt import Init, Run


@dataclass(frozen=True)
class Orthogonal(Init):
    """Square maps start as rotations."""

    def draw(self, name, shape, std, generator):
        drawn = super().draw(name, shape, std, generator)
        return std * shape[0] ** 0.5 * torch.linalg.qr(drawn)[0] if shape[0] == shape[1] else drawn


def orthogonal(run: Run) -> Run:
    """Square matrices start as rotations, with the size of the base's.

    Source: Saxe et al. 2013, 1312.6120.
    Claim: better for deep linear networks.
    Expected: tie.
    """
    return replace(run, init=Orthogonal(**vars(run.init)))
