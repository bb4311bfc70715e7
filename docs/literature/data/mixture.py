from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from hectogpt import DataOrder, Run


@dataclass(frozen=True)
class Mixture(DataOrder):
    """Of a folder with two texts the one first by name, which has this part of all rows, gets `share` of those read."""

    part: float = 0.5
    share: float = 0.8
    repeats: ClassVar[bool] = True

    def order(self, sequences, seed, epoch):
        n = len(sequences)
        draw = np.random.default_rng([seed, epoch])
        end = round(self.part * n)
        where = draw.random(n)
        return np.where(draw.random(n) < self.share, where * end, end + where * (n - end)).astype(int)


def mixture(run: Run) -> Run:
    """Four fifths of the rows come from the first of two texts.

    Not in the atlas: its texts are read one at a time.
    """
    return replace(run, data=replace(run.data, order=Mixture()))
