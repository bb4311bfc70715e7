from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from hectogpt import DataOrder, Run, Shuffled


@dataclass(frozen=True)
class RareTwice(DataOrder):
    """The half of the rows with more distinct tokens is read twice, the other is left out."""

    repeats: ClassVar[bool] = True

    def order(self, sequences, seed, epoch):
        distinct = np.array([len(np.unique(row)) for row in sequences])
        half = np.argsort(-distinct, kind="stable")[: (len(sequences) + 1) // 2]
        return np.concatenate((half, half))[Shuffled().order(sequences, seed, epoch)]


def rare_twice(run: Run) -> Run:
    """Rows with many different tokens are read, the others left out.

    Source: choosing data by diversity, for instance Tirumala et al. 2023 (D4), 2308.12284.
    Claim: better; a fifth fewer steps on web text.
    Expected: worse, 0.02.
    """
    return replace(run, data=replace(run.data, order=RareTwice()))
