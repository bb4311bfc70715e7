"""A verdict on losses from any program: read them from files, pair them by seed, test the gain.

The test is that of `hectogpt compare --until decided` (sequential.py): the result stays valid when
it is recomputed after every new seed.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hectogpt import errors
from hectogpt.display import one_line
from hectogpt.errors import DataError, Setting, SetTo, UserError
from hectogpt.files import parse_json_object, read_bytes
from hectogpt.lab.sequential import half_width, look, p_value, pair_of
from hectogpt.lab.statistics import LEAST_DIFFERENCE, OPENINGS, p_text

LARGEST = 64 << 20  # bytes; the largest file of losses that is read
MOST_SEEDS = 10_000  # larger forecasts are not reported

Losses = Mapping[str, float]  # seed -> loss, in the order of the file


@dataclass(frozen=True)
class LossVerdict:
    """The result of testing losses b against losses a.

    Attributes:
        verdict: "better" if b is lower than a by at least `margin` and the interval lies above 0;
            "worse" in the opposite case; "tie" if the interval lies within the margin; otherwise
            "unproven".
        gain: mean of a minus b over the pairs, in the unit of the losses; positive means that b is
            better.
        interval: 95 % interval of the gain, valid at every look; None for a single pair.
        p: two-sided p value, valid at every look.
        pairs: number of pairs.
        more_seeds: about how many more pairs would decide the test if gain and spread stayed as
            they are. 0 if it is decided. None if there is only one pair, which has no spread, or
            if the number exceeds 10,000.
        margin: smaller differences count as a tie.
        paired: True if losses are paired by seed, False if by position in the files.
        unused: the seeds without a partner; for losses paired by position, a phrase that says how
            many are left over.
    """

    verdict: str
    gain: float
    interval: tuple[float, float] | None
    p: float
    pairs: int
    more_seeds: int | None
    margin: float
    paired: bool
    unused: tuple[str, ...]

    def text(self, a: str, b: str) -> str:
        """The verdict as one paragraph. a, b: names of the two sets of losses."""
        opening = OPENINGS[self.verdict].format(arm=b, first=a)
        direction = "lower" if self.gain >= 0 else "higher"
        facts = [f"its mean loss is {abs(self.gain):.4g} {direction}"]
        if self.interval is not None:
            low, high = self.interval
            facts.append(
                f"gain {self.gain:+.4g}, 95 % interval {low:+.4g} to {high:+.4g}, p "
                f"{p_text(self.p)}"
            )
        how = "paired by seed" if self.paired else "not paired by seed"
        facts.append(f"{self.pairs} pair{'' if self.pairs == 1 else 's'}, {how}")
        lines = [f"{opening}: {'; '.join(facts)}.", self._next()]
        lines.append("The interval and p stay valid however often you look while seeds are added.")
        if self.unused:
            lines.append(f"Not used, for lack of a partner: {', '.join(self.unused)}.")
        return " ".join(line for line in lines if line)

    def _next(self) -> str:
        if self.verdict != "unproven":
            return ""
        if self.pairs == 1:
            return "One pair has no spread: run at least three seeds."
        if self.more_seeds is None:
            return f"More than {MOST_SEEDS:,} seeds would be needed to decide it."
        return f"Seeds still needed if gain and spread stay the same: about {self.more_seeds:,}."

    def as_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def verdict(
    a: Losses | Sequence[float], b: Losses | Sequence[float], margin: float = LEAST_DIFFERENCE
) -> LossVerdict:
    """Test whether losses b are lower than losses a.

    Args:
        a: losses of the base, a mapping from seed to loss or a sequence.
        b: losses of the change, in the same form. Two mappings are paired by seed. Two sequences
            are paired by position. This is valid for independent runs, but takes more runs than
            pairing by seed.
        margin: least difference that counts, in the unit of the losses.

    Raises UserError if no pair can be made, a loss is not finite, or the margin is negative.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise UserError(
            Setting("margin", f"{margin:g}"),
            why="it must be 0 or more",
            fix=SetTo("margin", LEAST_DIFFERENCE),
        )
    paired = isinstance(a, Mapping) and isinstance(b, Mapping)
    before = dict(_numbered(a, paired))
    after = dict(_numbered(b, paired))
    shared = [seed for seed in before if seed in after]
    unused = tuple(str(seed) for seed in [*before, *after] if seed not in shared)
    if unused and not paired:
        unused = (f"the last {len(unused)} of the longer list",)
    if not shared:
        why = f"no shared seed; seeds: {', '.join(unused[:6])}" if paired else "one set is empty"
        raise DataError(
            "these losses cannot be compared",
            why=why,
            fix="run both with the same seeds; without seeds, losses are paired by position",
        )
    gains = np.array([before[seed] - after[seed] for seed in shared], np.float64)
    if not np.isfinite(gains).all():
        raise DataError(
            "a loss is not finite",
            why="a test cannot count a run that diverged",
            fix="give it the loss of a uniform guess, ln(vocabulary size), or leave its seed out "
            "of both",
        )
    pair = pair_of(gains.tolist(), margin)
    return LossVerdict(
        verdict=pair.verdict,
        gain=pair.gain,
        interval=pair.interval,
        p=p_value(gains),
        pairs=len(gains),
        more_seeds=0 if pair.verdict != "unproven" else seeds_to_decide(gains, margin),
        margin=margin,
        paired=paired,
        unused=unused,
    )


def _numbered(losses: Losses | Sequence[float], paired: bool) -> Iterable[tuple[Any, float]]:
    """Yield each loss with its seed or, if the losses are not paired, with its position."""
    if isinstance(losses, Mapping):
        return losses.items() if paired else enumerate(losses.values())
    return enumerate(losses)


def seeds_to_decide(gains: np.ndarray, margin: float) -> int | None:
    """Return how many more gains with this mean and spread would decide the test.

    Returns None for a single gain, or if more than MOST_SEEDS would be needed.
    """
    if len(gains) < 2:
        return None
    n = np.arange(len(gains) + 1, MOST_SEEDS + len(gains) + 1, dtype=np.float64)
    gain = abs(float(np.mean(gains)))
    half = half_width(n, (n - 1) * float(np.var(gains, ddof=1)))
    decided = half < gain if gain >= margin else gain + half <= margin
    return int(n[decided][0]) - len(gains) if decided.any() else None


# --- files


def read_losses(name: str) -> tuple[Losses, bool]:
    """Read losses from a file. Returns them by seed, and True if the file names seeds.

    Without seeds, the keys are row numbers.

    Args:
        name: FILE or FILE:COLUMN. The file is CSV with a header (separated by commas, semicolons
            or tabs) or JSON lines (.jsonl). COLUMN, `loss` by default, holds the losses; the
            column `seed` holds the seeds.

    Raises UserError (DATA) for a file that cannot be read, lacks the column, or repeats a seed.
    """
    path, column = file_and_column(name, "loss")
    try:
        text = read_bytes(path, LARGEST).decode("utf-8-sig")
        rows = json_rows(text) if path.suffix in (".jsonl", ".json") else csv_rows(text)
    except (OSError, ValueError) as error:
        raise errors.unreadable(
            path, error, fix="a CSV or .jsonl file with columns seed and loss"
        ) from None
    columns = list(rows[0]) if rows else []
    shown = one_line(", ".join(columns)) or "none"
    if column not in columns:
        fix = (
            f"{path}:COLUMN with one of these"
            if columns
            else f"a first line such as seed,{column}"
        )
        raise DataError(
            f"{path} has no column {column!r}",
            why=f"its columns: {shown}",
            fix=fix,
        )
    seeded = "seed" in columns
    losses: dict[str, float] = {}
    for number, row in enumerate(rows, 1):
        seed = str(row.get("seed", "")).strip() if seeded else str(number)
        try:
            loss = float(row[column])
        except (KeyError, TypeError, ValueError, OverflowError):
            loss = math.nan
        if not seed or not math.isfinite(loss):
            raise DataError(
                f"{path}, row {number}: seed {seed or '(none)'}, {column} {row.get(column)!r}",
                why="every row needs a seed and a finite number",
                fix="for a run that diverged, write the loss of a uniform guess or remove its "
                "seed from both files",
            )
        if seed in losses:
            raise DataError(
                f"{path}, row {number}: seed {seed} appears twice",
                why="each seed may occur once",
                fix="use one file per arm, with one row per seed",
            )
        losses[seed] = loss
    return losses, seeded


def file_and_column(name: str, default: str) -> tuple[Path, str]:
    """Split FILE:COLUMN into its parts; a FILE alone gets the default column."""
    if not Path(name).exists() and ":" in name:
        file, _, column = name.rpartition(":")
        return Path(file), column
    return Path(name), default


def csv_rows(text: str) -> list[dict[str, Any]]:
    """Return the rows of a CSV as dicts; the keys are the names in its first line.

    Raises ValueError for an invalid CSV.
    """
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        return [{str(key).strip(): value for key, value in row.items()} for row in reader]
    except csv.Error as error:
        raise ValueError(str(error)) from None


def json_rows(text: str) -> list[dict[str, Any]]:
    """The objects of a .jsonl file. Raises ValueError if a line is not an object."""
    return [parse_json_object(line.encode()) for line in text.splitlines() if line.strip()]


# --- the picture


def plot_verdict(path: Path, gains: Sequence[float], margin: float, title: str) -> None:
    """Write a PNG of the gains seed by seed, with the running mean and its interval."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from hectogpt.training.plot import (
        BLUE,
        LIGHT_GREY,
        place_legend,
        plain_text,
        save_figure,
        style_axes,
    )

    looks = look(gains, margin)
    n = np.arange(1, len(gains) + 1)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    bounded = np.isfinite(looks.high)
    axes.axhspan(-margin, margin, color=LIGHT_GREY, alpha=0.3, label=f"within {margin:g}: a tie")
    axes.axhline(0, color="0.35", linewidth=0.8)
    axes.fill_between(
        n[bounded],
        looks.low[bounded],
        looks.high[bounded],
        color=BLUE,
        alpha=0.2,
        label="95 % interval",
    )
    axes.plot(n, looks.gain, color=BLUE, label="mean gain so far")
    axes.plot(n, gains, ".", color="0.35", label="each pair")
    axes.set_xlabel("pairs")
    axes.set_ylabel("gain: first loss minus second")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_title(plain_text(title), fontsize=10)
    place_legend(figure, axes)
    style_axes(axes)
    save_figure(figure, path)
