from dataclasses import dataclass, replace

from hectogpt import Run, Shuffled


@dataclass(frozen=True)
class SmallFirst(Shuffled):
    """Half the rows of each batch for the first half of the run, the others are left out."""

    def cut(self, rows, step, steps):
        return rows[: -(-len(rows) // 2)] if step < steps // 2 else rows


def small_first(run: Run) -> Run:
    """Batches of 8 rows in the first half of the run, of 16 in the second. It reads a quarter less.

    Source: Smith et al. 2017, 1711.00489; Brown et al. 2020 (GPT-3), 2005.14165.
    Claim: tie at fewer tokens for the same number of steps.
    Expected: worse, 0.03.
    """
    return replace(run, data=replace(run.data, order=SmallFirst()))
