"""Batches as a pure function of (seed, step): nothing is drawn, so nothing has to be saved to resume.

The token stream is cut into non-overlapping windows; every epoch shows each of them once, in an order of its own.
Refuses a stream shorter than one window.
"""

from __future__ import annotations

import numpy as np

from hectogpt import errors
from hectogpt.errors import UserError


class Batches:
    """Batch after batch of windows of a token stream.

    The order of an epoch sorts the windows by n_windows numbers of the counter-based generator Philox4x64
    (doi 10.1145/2063384.2063405) with key (seed, epoch). Step s takes places s * batch_size to
    (s + 1) * batch_size - 1 of the epochs' orders written one after the other, so epochs roll over within a batch.

    tokens: [n], ids of any integer type. window: tokens per row. n_windows: n // window; the rest is never shown.
    """

    def __init__(self, tokens: np.ndarray, window: int = 512, batch_size: int = 16, seed: int = 0) -> None:
        """Raises UserError: DATA if `tokens` do not fill one window, USAGE for a size or seed out of range."""
        for name, value, least, most in (
            ("window", window, 1, 2**31),
            ("batch_size", batch_size, 1, 2**31),
            ("seed", seed, 0, 2**63 - 1),
        ):
            if not least <= value <= most:
                raise UserError(
                    f"{name} is {value}", why=f"it must lie in [{least}, {most}]", fix=f"--data.{name} {least}"
                )
        self.n_windows = len(tokens) // window
        if self.n_windows == 0:
            raise UserError(
                f"the corpus is too short: {len(tokens):,} tokens in this split, one window needs {window:,}",
                why="windows do not overlap and are never padded",
                fix=f"more text, or --data.window {max(len(tokens), 2)}",
                code=errors.DATA,
            )
        self.window, self.batch_size, self.seed = window, batch_size, seed
        self._windows = np.asarray(tokens[: self.n_windows * window]).reshape(self.n_windows, window)
        self._orders: dict[int, np.ndarray] = {}

    def order(self, epoch: int) -> np.ndarray:
        """int64 [n_windows]: the windows in the order in which this epoch shows them."""
        if epoch not in self._orders:
            if len(self._orders) > 1:  # a batch of a long corpus meets two epochs at most
                self._orders.clear()
            key = np.array([self.seed, epoch], dtype=np.uint64)
            self._orders[epoch] = np.argsort(np.random.Philox(key=key).random_raw(self.n_windows), kind="stable")
        return self._orders[epoch]

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that the first row of this step's batch belongs to."""
        return step * self.batch_size // self.n_windows

    def rows(self, step: int, lo: int, hi: int) -> np.ndarray:
        """int64 [hi - lo, window]: rows lo to hi - 1 of the batch, whatever the other rows' owners do."""
        if not (step >= 0 and 0 <= lo <= hi <= self.batch_size):
            raise ValueError(f"step {step}, rows {lo}:{hi} of a batch of {self.batch_size}")
        places = range(step * self.batch_size + lo, step * self.batch_size + hi)
        chosen = [self.order(place // self.n_windows)[place % self.n_windows] for place in places]
        return self._windows[np.array(chosen, dtype=np.int64)].astype(np.int64)

    def at(self, step: int) -> np.ndarray:
        """int64 [batch_size, window]: the whole batch of this step (from 0)."""
        return self.rows(step, 0, self.batch_size)


def tokens_read(tokens: np.ndarray, window: int, batch_size: int, seed: int, steps: int) -> np.ndarray:
    """int64 [steps * batch_size, window]: the windows that a run's first `steps` batches show."""
    batches = Batches(tokens, window, batch_size, seed)
    return np.concatenate([batches.at(step) for step in range(steps)])
