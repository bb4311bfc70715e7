"""Batches as a pure function of (seed, step), so resuming a run needs no saved state.

The token stream is cut into sequences that do not overlap. Every epoch shows each sequence once,
in an order that depends on the epoch. A DataOrder may then cut a batch; `Shuffled` does not.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hectogpt.errors import DataError, SetTo
from hectogpt.serialization import Value


@dataclass(frozen=True)
class DataOrder(Value):
    """The order in which an epoch shows the sequences of the training text.

    Attributes:
        repeats: True if an epoch may show some sequences several times and skip others. This
            breaks the rules of a track that reads no text twice.
    """

    repeats: ClassVar[bool] = False

    @abstractmethod
    def order(self, sequences: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The order of an epoch, int64 [n_sequences]: a pure function of its arguments.

        It is a permutation of 0 .. n_sequences - 1, unless `repeats` is True.

        Args:
            sequences: ids [n_sequences, seq_len].
            seed: the run's seed.
            epoch: counts from 0.
        """

    def cut(self, rows: np.ndarray, step: int, steps: int) -> np.ndarray:
        """Cut the batch of 0-based `step`: a pure function of its arguments.

        Args:
            rows: the whole batch, int64 [batch_size, seq_len].
            step: the step.
            steps: the number of steps of the run.

        The result, [rows, tokens], may have fewer rows, shorter rows, or more but shorter rows,
        with no more tokens in total. Counts of the training text are taken before the cut.
        """
        return rows


@dataclass(frozen=True)
class Shuffled(DataOrder):
    """A different random order for every epoch.

    The sequences are sorted by n_sequences numbers from the counter-based generator Philox4x64
    (doi 10.1145/2063384.2063405) with the key (seed, epoch). numpy promises not to change these
    numbers.
    """

    def order(self, sequences: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        numbers = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(
            len(sequences)
        )
        return np.argsort(numbers, kind="stable")


class Batches:
    """The batches of a token stream.

    Step s takes places s * batch_size to (s + 1) * batch_size - 1 in the joined orders of all
    epochs, so a batch can hold the end of one epoch and the start of the next.

    Args:
        tokens: [n], ids of any integer type.
        seq_len: tokens per row.
        batch_size: rows per batch.
        seed: the run's seed.
        data_order: the order of the sequences.
        steps: the number of steps of the run, passed to the order's `cut`.

    Attributes:
        n_sequences: n // seq_len; the remaining tokens are never shown.
        cuts: True if the order cuts batches.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        seq_len: int = 512,
        batch_size: int = 16,
        seed: int = 0,
        data_order: DataOrder = Shuffled(),
        steps: int = 1,
    ) -> None:
        """Raises UserError (DATA) if `tokens` do not fill one sequence."""
        self.n_sequences = len(tokens) // seq_len
        if self.n_sequences == 0:
            raise DataError(
                f"the corpus is too short: {len(tokens):,} tokens in this split; one sequence "
                f"needs {seq_len:,}",
                why="sequences do not overlap and are never padded",
                fix=("use more text, or ", SetTo("data.seq_len", max(len(tokens), 2))),
            )
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.data_order = data_order
        self.steps = steps
        self.cuts = type(data_order).cut is not DataOrder.cut
        self._sequences = np.asarray(tokens[: self.n_sequences * seq_len]).reshape(
            self.n_sequences, seq_len
        )
        self._orders: dict[int, np.ndarray] = {}

    def order(self, epoch: int) -> np.ndarray:
        """The order in which this epoch (from 0) shows the sequences: int64 [n_sequences].

        Raises UserError (DATA) if the DataOrder returns something else.
        """
        if epoch not in self._orders:
            if len(self._orders) > 1:  # a batch of a long corpus spans at most two epochs
                self._orders.clear()
            order = np.asarray(self.data_order.order(self._sequences, self.seed, epoch))
            numbers = np.arange(self.n_sequences)
            repeats = self.data_order.repeats
            inside = order.shape == numbers.shape and bool(np.isin(order, numbers).all())
            if not (inside if repeats else np.array_equal(np.sort(order, axis=None), numbers)):
                raise DataError(
                    f"the order of {type(self.data_order).__name__} does not order the "
                    f"{self.n_sequences} sequences",
                    why=f"it must hold {self.n_sequences} numbers from 0 on"
                    + (", each once" if not repeats else ""),
                    fix=""
                    if repeats
                    else "repeats: ClassVar[bool] = True in the class allows repeats",
                )
            self._orders[epoch] = order
        return self._orders[epoch]

    def rows(self, step: int) -> np.ndarray:
        """The rows of this step (from 0) before they are cut: int64 [batch_size, seq_len]."""
        return self._sequences[self.numbers(step)].astype(np.int64)

    def numbers(self, step: int) -> list[int]:
        """The indices of the sequences that are the rows of this step."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [
            int(self.order(place // self.n_sequences)[place % self.n_sequences])
            for place in places
        ]

    def at(self, step: int) -> np.ndarray:
        """The batch of this step (from 0): int64 [batch_size, seq_len], or as the order cuts it.

        Raises UserError (DATA) if the order returns an invalid batch.
        """
        rows = self.rows(step)
        if not self.cuts:
            return rows
        batch = np.asarray(self.data_order.cut(rows.copy(), step, self.steps))
        fault = (
            f"it gives {batch.dtype} of shape {batch.shape} for {rows.dtype} of shape {rows.shape}"
        )
        fits = batch.dtype.kind == "i" and batch.ndim == 2 and 0 < batch.size <= rows.size
        if fits and 2 <= batch.shape[1] <= self.seq_len:
            fault = "" if np.isin(batch, rows).all() else "it has tokens that the batch lacks"
        if fault:
            raise DataError(
                f"step {step + 1}: {type(self.data_order).__name__}.cut gave an invalid batch",
                why=fault,
                fix=f"return rows of 2 to {self.seq_len} tokens, at most {rows.size:,} in total",
            )
        return np.ascontiguousarray(batch, dtype=np.int64)

    def tokens(self, step: int) -> int:
        """The number of tokens in the batch of this step."""
        return self.at(step).size if self.cuts else self.batch_size * self.seq_len
