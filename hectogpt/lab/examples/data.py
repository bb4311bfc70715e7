"""Idea: a curriculum. The run reads the same rows of text, those with few distinct tokens first.

Expected: nothing or a loss. The last batches, which count most because the learning rate falls, are then the strangest.
"""

from dataclasses import dataclass

import numpy as np

from hectogpt import DataOrder, Run, Shuffled, replace


@dataclass(frozen=True)
class EasyFirst(DataOrder):
    """A random order, cut into pieces of `rows` rows that are sorted by their number of distinct tokens."""

    rows: int

    def order(self, sequences: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """ids [rows, tokens] -> the numbers of the rows in the order in which this epoch reads them."""
        order = Shuffled().order(sequences, seed, epoch)
        distinct = np.array([len(np.unique(row)) for row in sequences])
        pieces = [order[start : start + self.rows] for start in range(0, len(order), self.rows)]
        return np.concatenate([piece[np.argsort(distinct[piece], kind="stable")] for piece in pieces])


def idea(run: Run) -> Run:
    """One piece is what the whole run reads."""
    order = EasyFirst(rows=run.steps * run.data.batch_size)
    return replace(run, data=replace(run.data, order=order))
