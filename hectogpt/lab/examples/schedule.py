"""Idea: keep the full learning rate for half of the run, then let it fall as 1 - sqrt(x).

Source: 2405.18392. Expected: about a tie with the top, whose learning rate falls in a straight
line from the same step. The square root falls faster at first and slower at the end, so more of
the last steps are small, which averages out the noise of single batches.
"""

from dataclasses import dataclass

from hectogpt import Run, Schedule, replace


@dataclass(frozen=True)
class SqrtCooldown(Schedule):
    """A factor for every learning rate.

    Each field is also an option: hectogpt compare ... --sweep schedule.hold=0.4,0.6
    """

    warmup: int = 5  # steps over which the factor rises to 1
    hold: float = 0.5  # share of the run after which it falls

    def factor(self, step: int, steps: int) -> float:
        """The factor at `step`, which counts from 0 to steps - 1."""
        rise = min(1.0, (step + 1) / self.warmup)
        start = self.hold * steps
        return rise if step < start else rise * (1 - ((step - start) / (steps - start)) ** 0.5)


def idea(run: Run) -> Run:
    """Return a changed copy of a run, such as the ladder's top."""
    return replace(run, schedule=SqrtCooldown())
