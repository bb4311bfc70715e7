"""Records sorted into leaderboards, one per corpus and track: rungs, other recipes, ablations, longer runs, sweeps.

Pure functions: the same records give the same leaderboards. If the settings of a recipe have changed, the records of
its newest settings count.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

from hectogpt.display import NGRAMS
from hectogpt.lab.recipes import WITHOUT
from hectogpt.lab.record import NOT_IDENTITY, Record, arm_label
from hectogpt.lab.statistics import Paired, Summary, compare_pairs, summarize
from hectogpt.lab.tracks import TRACKS
from hectogpt.serialization import diff

# Descriptions of the tracks in which a trained model is not scored by itself. The package no longer has the last two
# tracks; commit 37ff3df8 still had them.
SCORED = {
    "closed+counting": "Runs mixed with counts of the text that they read. From induction_spelling on, with the best "
    "counting; older ones with n-grams of order 5 by five weights (0.011 to 0.012 worse on dev).",
    "retrieval": "Runs that look up what followed similar places in their text. Not ranked with *closed*.",
    "adaptive": "Runs that keep learning: each token is scored before it is learned. Not ranked with *closed*.",
}


@dataclass(frozen=True)
class Entry:
    """The records of one recipe (with the same overrides) on one corpus and track, one per seed.

    superseded: how many records of the same recipe with earlier settings are left out. dev_only: how many seeds are
    left out because they were scored on dev only while others were scored on test (such seeds chose a setting).
    """

    name: str
    records: tuple[Record, ...]
    superseded: int = 0
    dev_only: int = 0

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields that differ from the recipe's own."""
        return self.records[0].overrides

    @property
    def label(self) -> str:
        """The name, followed by the overridden fields."""
        return arm_label(self.name, self.overrides)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return int(self.records[0].run["steps"])

    @property
    def seeds(self) -> str:
        """The number of seeds as text, "1 seed" or "8 seeds"."""
        return "1 seed" if len(self.records) == 1 else f"{len(self.records)} seeds"

    @property
    def split(self) -> str:
        """The held-out text that ranks the entry: test if every seed was scored on it, else dev."""
        return "test" if len(self.losses("test")) == len(self.records) else "dev"

    def losses(self, split: str) -> dict[int, float]:
        """Seed -> nats per token of the held-out text `split`, for the seeds that were scored on it."""
        losses = {record.seed: record.loss(split) for record in self.records}
        return {seed: loss for seed, loss in losses.items() if loss is not None}

    def summary(self, split: str) -> Summary | None:
        """Mean and spread over seeds; None if no seed was scored."""
        losses = self.losses(split)
        return summarize(list(losses.values())) if losses else None

    def interval(self, split: str) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean loss over the entry's own seeds (Student's t); None below two."""
        summary = self.summary(split)
        if summary is None or summary.sd is None:
            return None
        half = float(stats.t.ppf(0.975, summary.n - 1)) * summary.sd / math.sqrt(summary.n)
        return summary.mean - half, summary.mean + half

    def mean(self, name: str) -> float | None:
        """Mean of a field over the records that have it."""
        values = [value for record in self.records if (value := getattr(record, name)) is not None]
        return float(np.mean(values)) if values else None

    def curves(self, name: str) -> np.ndarray:
        """`losses` or `grad_norms` as [seeds, steps], with NaN after the last step of a run that stopped early."""
        curves = _stack(self.records, name)
        return curves[~np.isnan(curves).all(axis=1)]


@dataclass(frozen=True)
class Leaderboard:
    """The entries of one corpus and track.

    rungs: the ladder's recipes, in its order. others: other recipes without overrides, in the order of the records.
    ablations: a rung without one of its parts. longer_runs: recipes with a different number of steps, in the ladder's
    order. sweeps: recipes with other overrides.
    ngrams: split -> name -> loss of the n-gram baselines, the mean over the seeds of the highest rung that has them.
    crashed: records of trials that crashed; they have no losses and are in no entry.
    """

    corpus: str
    track: str
    rungs: list[Entry] = field(default_factory=list)
    others: list[Entry] = field(default_factory=list)
    ablations: list[Entry] = field(default_factory=list)
    longer_runs: list[Entry] = field(default_factory=list)
    sweeps: list[Entry] = field(default_factory=list)
    ngrams: dict[str, dict[str, float]] = field(default_factory=dict)
    crashed: list[Record] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Corpus and track, for headings."""
        return f"{self.corpus}, {self.track.replace('+', ' + ')}"

    @property
    def slug(self) -> str:
        """Corpus and track, for names of files: letters, digits, dots, dashes and underscores."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.corpus}-{self.track}")

    @property
    def alone(self) -> bool:
        """True if its losses are those of models by themselves."""
        return self.track not in SCORED

    @property
    def top(self) -> Entry | None:
        """The highest rung that has records."""
        return self.rungs[-1] if self.rungs else None

    def part(self, names: Sequence[str]) -> Leaderboard:
        """The leaderboard with only these rungs, without n-grams."""
        return replace(self, rungs=[rung for rung in self.rungs if rung.name in names], ngrams={})

    def entries(self) -> list[Entry]:
        """Every entry."""
        return [*self.rungs, *self.others, *self.ablations, *self.longer_runs, *self.sweeps]

    def find(self, name: str) -> Entry | None:
        """The entry of a recipe without overrides."""
        return next((e for e in [*self.rungs, *self.others, *self.ablations] if e.name == name), None)


def count_pairs(n: int) -> str:
    """ "1 pair" or "8 pairs"."""
    return "1 pair" if n == 1 else f"{n} pairs"


def compare_entries(new: Entry, old: Entry) -> tuple[Paired | None, str]:
    """The gain of `new` over `old` on the seeds that both have (None if there are none), and its held-out text.

    The text is test if both entries are ranked by it, else dev. A seed that the two ran with different numbers of
    threads is not a pair, because that alone moves a loss by as much as some rungs gain.
    """
    split = "test" if new.split == old.split == "test" else "dev"
    threads = {record.seed: record.run["threads"] for record in old.records}
    equal = [r.seed for r in new.records if threads.get(r.seed) == r.run["threads"]]
    before, after = ({seed: loss for seed, loss in e.losses(split).items() if seed in equal} for e in (old, new))
    return compare_pairs(after, before), split


def compare_curves(new: Entry, old: Entry) -> np.ndarray:
    """[seeds, steps]: training loss of `old` minus that of `new` on the same batches, for the seeds that both have."""
    before = {record.seed: record for record in old.records}
    shared = [record for record in new.records if record.seed in before]
    both = _stack([before[record.seed] for record in shared] + shared, "losses")
    gains = both[: len(shared)] - both[len(shared) :]
    return np.asarray(gains[..., ~np.isnan(gains).all(axis=0)])


def _stack(records: Sequence[Record], name: str) -> np.ndarray:
    """[records, steps]: their curves, with NaN after the last step of a run that stopped early."""
    curves = [getattr(record, name) or [] for record in records]
    steps = max(map(len, curves), default=0)
    padded = [[*curve, *[np.nan] * (steps - len(curve))] for curve in curves]
    return np.array(padded, dtype=float).reshape(len(curves), steps)


def changed_sections(new: Entry, old: Entry) -> str:
    """The sections of the run in which two entries differ, for example "model, optim"."""
    ignored = {*NOT_IDENTITY, "recipe", "device", "dtype", "head_dtype"}
    changed = {path.split(".")[0] for path in diff(old.records[-1].run, new.records[-1].run)}
    return ", ".join(sorted(changed - ignored))


def build_leaderboards(records: Sequence[Record], ladder: Sequence[str]) -> list[Leaderboard]:
    """One leaderboard per corpus (in the order of the records) and track. ladder: its names, the baseline first.

    Records of runs with a memory of n-grams are left out: results/LOG.md says why.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if "memory" not in record.run["model"]:
            groups.setdefault((record.corpus, record.track), []).append(record)
    corpora = list(dict.fromkeys(corpus for corpus, _ in groups))
    tracks = list(dict.fromkeys(["closed", "minute", *SCORED, "closed+statistics", *TRACKS]))

    def position(key: tuple[str, str]) -> tuple[int, int, str]:
        corpus, track = key
        return corpora.index(corpus), tracks.index(track) if track in tracks else len(tracks), track

    return [_build(corpus, track, groups[corpus, track], ladder) for corpus, track in sorted(groups, key=position)]


def _build(corpus: str, track: str, records: Sequence[Record], ladder: Sequence[str]) -> Leaderboard:
    groups: dict[str, list[Record]] = {}
    for record in filter(lambda record: record.counts, records):
        groups.setdefault(json.dumps([record.recipe, record.overrides], sort_keys=True, allow_nan=False), []).append(
            record
        )
    board = Leaderboard(corpus, track, crashed=[record for record in records if not record.counts])
    for group in groups.values():
        entry = _newest(group)
        if set(entry.overrides) == {"steps"}:
            board.longer_runs.append(entry)
        elif entry.overrides:
            board.sweeps.append(entry)
        elif entry.name in ladder:
            board.rungs.append(entry)
        elif entry.name.startswith(WITHOUT):
            board.ablations.append(entry)
        else:
            board.others.append(entry)
    for entries in (board.rungs, board.longer_runs):
        entries.sort(key=lambda entry: ladder.index(entry.name) if entry.name in ladder else -1)
    places = {WITHOUT + name: place for place, name in enumerate(ladder)}
    board.ablations.sort(key=lambda entry: places.get(entry.name, len(places)))
    for split in ("dev", "test"):
        # Runs with a different sequence length read different n-grams, so only the highest rung's are shown.
        levels = [levels for entry in [*board.others, *board.rungs] if (levels := mean_ngrams(entry, split))]
        if levels:
            board.ngrams[split] = levels[-1]
    return board


def mean_ngrams(entry: Entry, split: str) -> dict[str, float]:
    """Name -> mean loss of the n-gram baselines over the records that have them on this split; {} if none has."""
    scored = [record for record in entry.records if record.ngram_split == split and record.ngram_kn3 is not None]
    levels = {name: [x for r in scored if (x := getattr(r, f"ngram_{name}")) is not None] for name in NGRAMS}
    return {name: float(np.mean(values)) for name, values in levels.items() if values}


def _newest(records: Sequence[Record]) -> Entry:
    """The records with the settings that were recorded last, one per seed; only tested seeds if there are any."""
    keys = [record.experiment() for record in records]
    chosen: dict[int, Record] = {}
    for record, key in zip(records, keys, strict=True):
        if key == keys[-1]:
            old = chosen.get(record.seed)
            if old is None or (old.test_loss is None and record.test_loss is not None):
                chosen[record.seed] = record
    newest = [chosen[seed] for seed in sorted(chosen)]
    tested = [record for record in newest if record.test_loss is not None] or newest
    superseded = sum(key != keys[-1] for key in keys)
    return Entry(records[-1].recipe, tuple(tested), superseded, len(newest) - len(tested))
