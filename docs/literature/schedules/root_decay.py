import math
from dataclasses import dataclass, replace

from hectogpt import Run, Schedule


@dataclass(frozen=True)
class RootDecay(Schedule):
    """Warm up, hold, and fall as 1 - sqrt(t), quickly at first."""

    warmup: int = 5
    hold: float = 0.5

    def factor(self, step, steps):
        start = self.hold * steps
        fallen = max(0.0, (step - start + 1) / (steps - start + 1))
        return min(1.0, (step + 1) / self.warmup) * (1 - math.sqrt(fallen))


def root_decay(run: Run) -> Run:
    """The decay is 1 - sqrt(t) instead of a line.

    Source: Haegele et al. 2024, 2405.18392; modded-nanogpt's optimizer track (3,250 -> 3,175 steps).
    Claim: better than a line of the same length.
    Expected: tie.
    """
    return replace(run, schedule=RootDecay())
