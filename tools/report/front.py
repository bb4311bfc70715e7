"""Loss against seconds: every recipe of a corpus, which of them are on the front, and two measures of its loss curve.

A measure is computed from the recorded losses of every step, each taken before the step's update.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hectogpt.lab.record import Record
from tools.report.leaderboard import Entry, Leaderboard
from tools.report.seconds import Seconds
from tools.report.tables import EMPTY, Table, format_loss, format_number

WINDOW = 5  # batches whose mean loss is compared with the trigram's
LOSS_TICKS = (1, 1.5, 2, 2.2, 2.4, 2.6, 2.8, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 10)
SECOND_TICKS = (1, 2, 5, 10, 20, 30, 60, 100, 200, 300, 600, 1000, 2000)
SAME_WORK = ("baseline", "learning_rate", "embedding_lr")  # their heads have a row for every token
NOISE = 4 / 3  # factor by which seconds of the same work may differ in one pass
RANKED = ("closed", "minute")  # tracks whose recipes are compared on the front
LEGEND = f"""\
A recipe of the tracks {" and ".join(RANKED)} is on the **front** unless another of them reaches a lower loss in at most
a third more seconds. Other tracks have other rules. Each recipe appears once, in the track that has most of its seeds.

**Steps to the trigram**: the first step at which the mean training loss of the last {WINDOW} batches is below the
Kneser-Ney trigram's loss on the held-out text, as a mean over seeds. The trigram has counted all tokens that the run
reads in all of its steps. A batch is scored before its update and, in the tracks that read each token once, the run has
not seen its text before. So both losses are on new text of the same corpus, though not on the same documents. This does
not hold for `counts`, whose initial weights are counts of that text. Some batches are easier than others, so a recipe
can pass the trigram here early, or even if its loss on the held-out text stays above the trigram's.

**Code length**: the mean of the training losses of all steps, each before its update, as a mean over seeds: the nats
per token that it takes to code the training text while it is learned (prequential coding). The first token of each row
is not counted. It means nothing for `counts`, and little for a run that reads its text twice.
"""


@dataclass(frozen=True)
class Point:
    """A recipe on a corpus. mark: the rung's number, or a letter. split: the held-out text of the loss. seconds: of 100
    steps, None if they were not measured. best: True if it is on the front."""

    entry: Entry
    track: str
    mark: str
    split: str
    loss: float | None
    seconds: float | None
    best: bool = False

    @property
    def is_rung(self) -> bool:
        """True if it is a rung of the ladder."""
        return self.mark.isdigit()


@dataclass(frozen=True)
class Front:
    """The points of one corpus, the rungs first. levels: losses of the n-gram baselines on the held-out text of the
    points, as far as they are known."""

    corpus: str
    points: list[Point]
    levels: dict[str, float]

    @property
    def slug(self) -> str:
        """The corpus, for names of files and elements of a page."""
        return Leaderboard(self.corpus, "front").slug

    @property
    def drawn(self) -> list[tuple[Point, float, float]]:
        """(point, seconds, loss) of those that have both."""
        return [(p, p.seconds, p.loss) for p in self.points if p.seconds is not None and p.loss is not None]

    @property
    def yardsticks(self) -> dict[str, float]:
        """The levels that are drawn: the trigram's and the best counting's."""
        return {name: self.levels[name] for name in ("kn3", "best") if name in self.levels}

    @property
    def top(self) -> float:
        """The highest loss that is drawn: of the points whose loss is not above the unigram baseline's, or of all."""
        losses = [loss for _, _, loss in self.drawn]
        return max([y for y in losses if y <= self.levels.get("unigram", y)], default=max(losses))

    @property
    def line(self) -> list[tuple[float, float]]:
        """(seconds, loss) along the front."""
        return sorted((seconds, loss) for point, seconds, loss in self.drawn if point.best)


def build_fronts(boards: Sequence[Leaderboard], seconds: Seconds, ladder: Sequence[str]) -> list[Front]:
    """A front for each corpus, in the order of the leaderboards. ladder: its names, the baseline first."""
    return [_build(corpus, boards, seconds, ladder) for corpus in dict.fromkeys(board.corpus for board in boards)]


def _build(corpus: str, boards: Sequence[Leaderboard], seconds: Seconds, ladder: Sequence[str]) -> Front:
    chosen: dict[str, tuple[Entry, str]] = {}
    own = [board for board in boards if board.corpus == corpus and board.alone]
    for board in own:
        for entry in [*board.rungs, *board.others]:
            old = chosen.get(entry.name)
            if old is None or len(entry.records) > len(old[0].records):
                chosen[entry.name] = (entry, board.track)
    rungs = [name for name in ladder if name in chosen]
    split = "test" if any(entry.split == "test" for entry, _ in chosen.values()) else "dev"
    letters = _letters()
    points = []
    for name in [*rungs, *(name for name in chosen if name not in rungs)]:
        entry, track = chosen[name]
        mark = str(ladder.index(name)) if name in rungs else next(letters)
        summary = entry.summary(split)
        points.append(
            Point(entry, track, mark, split, summary.mean if summary else None, seconds.of.get((corpus, name)))
        )
    front = Front(corpus, points, next((board.ngrams[split] for board in own if split in board.ngrams), {}))
    return replace(front, points=[replace(p, best=_is_best(p, front)) for p in points])


def _letters() -> Iterator[str]:
    """a, b ... z, aa, bb ..."""
    return (letter * times for times in range(1, 100) for letter in string.ascii_lowercase)


def _is_best(point: Point, front: Front) -> bool:
    """True if no other point of the ranked tracks has a lower loss within NOISE times the seconds."""
    if point.seconds is None or point.loss is None or point.track not in RANKED:
        return False
    near = [loss for other, s, loss in front.drawn if other.track in RANKED and s <= NOISE * point.seconds]
    return point.loss <= min(near)


def steps_to_trigram(record: Record) -> int | None:
    """The first step whose last WINDOW batches have a mean training loss below the trigram's held-out loss; None if
    there is none, or the trigram was not scored."""
    level, losses = record.ngram_kn3, np.array(record.losses, dtype=float)
    if level is None or len(losses) < WINDOW:
        return None
    means = np.lib.stride_tricks.sliding_window_view(losses, WINDOW).mean(axis=1)
    below = np.flatnonzero(means < level)
    return int(below[0]) + WINDOW if len(below) else None


def code_length(record: Record) -> float | None:
    """Mean training loss over all steps, each before its update, nats per token; None for a run that stopped early."""
    losses = np.array(record.losses, dtype=float)
    whole = len(losses) == record.run.get("steps") and bool(np.isfinite(losses).all())
    return float(losses.mean()) if whole else None


def format_steps_to_trigram(entry: Entry) -> str:
    """The mean over seeds, with the number of seeds that reached it, if not all did."""
    found = [steps for record in entry.records if (steps := steps_to_trigram(record)) is not None]
    if not found:
        return "never" if any(record.ngram_kn3 is not None for record in entry.records) else EMPTY
    mean = f"{np.mean(found):.0f}"
    return mean if len(found) == len(entry.records) else f"{mean} ({len(found)} of {len(entry.records)} seeds)"


def mean_code_length(entry: Entry) -> float | None:
    """The mean over seeds; None if a run stopped early."""
    lengths = [code_length(record) for record in entry.records]
    known = [length for length in lengths if length is not None]
    return float(np.mean(known)) if len(known) == len(lengths) else None


def front_table(front: Front) -> Table:
    """One row per recipe."""
    split = front.points[0].split if front.points else "test"
    header = ["", "recipe", "track", "front", f"loss ({split})", "n", "seconds of 100 steps", "steps to the trigram"]
    header.append("code length")
    rows = [
        [
            point.mark,
            point.entry.name,
            point.track,
            "on it" if point.best else EMPTY,
            format_loss(point.entry.summary(split)),
            str(len(point.entry.records)),
            format_number(point.seconds),
            format_steps_to_trigram(point.entry),
            format_number(mean_code_length(point.entry), 3),
        ]
        for point in front.points
    ]
    return Table(header, rows, left=2)


def introduction(seconds: Seconds) -> str:
    """An explanation of the seconds, the front and the two measures, in Markdown."""
    text = (
        "**Seconds** are those of 100 steps, measured on one machine in one pass "
        f"({seconds.where}): building, the first step, and 99 times the median of {seconds.rounds} further steps. SOAP "
        "has two kinds of steps, which are timed and counted separately. All are scaled to the median step of `muon` "
        "in the pass. The recipes are those of that commit; the losses come from trials on several machines.\n"
    )
    texts = [[s for (_, n), s in seconds.of.items() if n == name] for name in SAME_WORK]
    spread = max(max(s) / min(s) if s else 1.0 for s in texts)
    text += f"{', '.join(SAME_WORK)} do the same work on every text, yet their seconds differ by up to "
    text += f"{100 * spread - 100:.0f} %, so smaller differences mean nothing.\n"
    if seconds.stand_in:
        text += f"\nThe seconds of {' and '.join(seconds.stand_in)} come from another text with as many token ids.\n"
    return f"{text}\n{LEGEND}"
