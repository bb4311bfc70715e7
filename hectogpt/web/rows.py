"""The rows of a run's metrics.jsonl as one list of numbers a column.

A file may be another program's, damaged, or replaced while it is read: every value is checked, and half a row waits for
its end.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hectogpt.json_files import open_regular
from hectogpt.run_records import number_of, parse_row, score_of

# column -> the row's key
COLUMNS = {"step": "step", "loss": "train/loss", "norm": "train/grad_norm", "seconds": "train/dt"}
MOST_BYTES = 8 << 20  # of a file's end that are read, some 30,000 rows, so that a long one does not hold up the page
MOST_POINTS = 1000  # of a curve as it is drawn

Number = float | None


class Rows:
    """What metrics.jsonl holds so far. scores: (step, held-out loss)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: dict[str, list[Number]] = {name: [] for name in COLUMNS}
        self.scores: list[tuple[int, float]] = []
        self._seen: tuple[int, ...] = ()  # the file that was read: its device, number, size and time

    def __len__(self) -> int:
        return len(self.columns["step"])

    def refresh(self) -> bool:
        """Read the file again if it has changed; whether it has. One that cannot be read changes nothing."""
        try:
            with open_regular(self.path) as file:
                status = os.fstat(file.fileno())
                now = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
                if now == self._seen:
                    return False
                cut = max(status.st_size - MOST_BYTES, 0)
                file.seek(cut)
                lines = file.read(MOST_BYTES).split(b"\n")[1 if cut else 0 : -1]
        except OSError:
            return False
        self._seen, self.columns, self.scores = now, {name: [] for name in COLUMNS}, []
        for line in lines:
            self._add(line)
        return True

    def _add(self, line: bytes) -> None:
        row = parse_row(line + b"\n")
        if row is None:
            return
        if "train/loss" in row:
            for column, key in COLUMNS.items():
                self.columns[column].append(number(row.get(key)))
        elif (score := number(score_of(row))) is not None:
            self.scores.append((row["step"], score))

    def drawn(self) -> dict[str, list[Number]]:
        """The columns as they are drawn: means over equal blocks if there are more rows than MOST_POINTS; the last row
        stays as it is."""
        columns, size = dict(self.columns), -(-len(self) // MOST_POINTS)
        if size > 1:
            columns = {name: [*_means(values[:-1], size), values[-1]] for name, values in columns.items()}
        return {name: [_short(value) for value in values] for name, values in columns.items()}

    def remaining(self, planned: int | None) -> float | None:
        """Seconds that the planned steps still need, at the median pace of the last ten; None if that is unknown."""
        last = sorted(dt for dt in self.columns["seconds"][-10:] if dt is not None)
        step = self.columns["step"][-1] if len(self) else None
        if not last or planned is None or step is None:
            return None
        return max(planned - step, 0.0) * last[len(last) // 2]


def number(value: Any) -> Number:
    """The value if it is a finite number that a drawing can hold."""
    return None if (found := number_of(value)) is None or abs(found) > 1e15 else found


def _means(values: list[Number], size: int) -> list[Number]:
    blocks = (values[start : start + size] for start in range(0, len(values), size))
    known = ([value for value in block if value is not None] for block in blocks)
    return [sum(block) / len(block) if block else None for block in known]


def _short(value: Number) -> Number:
    """Seven digits: more than any screen shows."""
    return None if value is None else float(f"{value:.7g}")
