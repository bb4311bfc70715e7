"""Records sorted into what a report shows: per corpus and track the ladder's rungs, the rest, anchors, curves.

Pure: the same records give the same standings. Where a recipe has changed since, the newest of its runs counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from hectogpt.errors import UserError
from hectogpt.lab.compare import TRACKS
from hectogpt.lab.statistics import Paired, Summary, paired, summarize
from hectogpt.lab.trials import NOT_IDENTITY, Row
from hectogpt.train.run import Run, sections_changed
from hectogpt.values import dump, load

ANCHORS = ("uniform", "unigram", "kn2", "kn3")
WITHOUT = "without-"


@dataclass(frozen=True)
class Entry:
    """The records of one recipe (with the same overrides) on one corpus and track, by seed.

    older: how many records of other runs under the same name were left aside. untested: how many seeds were, that had
    not been scored on test while others had (those that chose a setting, say).
    """

    name: str
    rows: tuple[Row, ...]
    older: int = 0
    untested: int = 0

    @property
    def overrides(self) -> Row:
        """Fields changed from the recipe's own."""
        return self.rows[0].get("overrides") or {}

    @property
    def label(self) -> str:
        """The name with the overridden fields."""
        return " ".join([self.name, *(f"{key}={json.dumps(value)}" for key, value in self.overrides.items())])

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return int(self.rows[0]["run"]["steps"])

    def losses(self, split: str) -> dict[int, float]:
        """Seed -> nats per token of held-out `split`, for the seeds that were scored on it."""
        return {row["seed"]: row[f"{split}_loss"] for row in self.rows if row.get(f"{split}_loss") is not None}

    def summary(self, split: str) -> Summary | None:
        """Mean and spread over seeds, None if no seed was scored."""
        losses = self.losses(split)
        return summarize(list(losses.values())) if losses else None

    @property
    def split(self) -> str:
        """The text that decides: test if the seeds were scored on it, else dev."""
        return "test" if len(self.losses("test")) == len(self.rows) else "dev"

    def mean(self, name: str) -> float | None:
        """Mean of a field over the records that have it."""
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return float(np.mean(values)) if values else None

    def curves(self, name: str) -> np.ndarray:
        """`losses` or `grad_norms` as [seeds, steps]; NaN after the last step of a run that stopped early."""
        curves = _side_by_side([row.get(name) for row in self.rows])
        return curves[~np.isnan(curves).all(axis=1)]


@dataclass(frozen=True)
class Standing:
    """One corpus and track. rungs and longer: the ladder's recipes in its order; the rest in the order of the records.

    beside: other recipes as they are; without: a rung minus one part; longer: other numbers of steps;
    swept: other overrides. anchors: split -> name -> mean over the highest rung's seeds of the count models' losses.
    """

    corpus: str
    track: str
    rungs: list[Entry] = field(default_factory=list)
    beside: list[Entry] = field(default_factory=list)
    without: list[Entry] = field(default_factory=list)
    longer: list[Entry] = field(default_factory=list)
    swept: list[Entry] = field(default_factory=list)
    anchors: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For headings."""
        return f"{self.corpus}, {self.track.replace('+', ' + ')}"

    @property
    def slug(self) -> str:
        """For file names."""
        return f"{self.corpus}-{self.track}".replace("+", "-").replace("/", "-").replace(":", "-")

    @property
    def top(self) -> Entry | None:
        """The last rung that has records."""
        return self.rungs[-1] if self.rungs else None

    def entries(self) -> list[Entry]:
        """Every entry."""
        return [*self.rungs, *self.beside, *self.without, *self.longer, *self.swept]

    def find(self, name: str) -> Entry | None:
        """The entry of an unmodified recipe."""
        return next((e for e in [*self.rungs, *self.beside, *self.without] if e.name == name), None)


def gain(new: Entry, old: Entry) -> tuple[Paired | None, str]:
    """The paired difference new - old, on test where both were tested, else on dev; and which text it was."""
    split = "test" if new.split == old.split == "test" else "dev"
    return paired(new.losses(split), old.losses(split)), split


def curve_gains(new: Entry, old: Entry) -> np.ndarray:
    """[seeds, steps]: how far `new` is below `old` in training loss on the same batch, where both have one."""
    after, before = ({row["seed"]: row.get("losses") for row in entry.rows} for entry in (new, old))
    both = [seed for seed in after if seed in before]
    curves = _side_by_side([before[seed] for seed in both] + [after[seed] for seed in both])
    gains = curves[: len(both)] - curves[len(both) :]
    return gains[..., ~np.isnan(gains).all(axis=0)]


def _side_by_side(curves: Sequence[list[float | None] | None]) -> np.ndarray:
    """[curves, steps], with NaN after the last step of those that are shorter or not there."""
    steps = max((len(curve or []) for curve in curves), default=0)
    return np.array([[*(curve or []), *[np.nan] * (steps - len(curve or []))] for curve in curves], dtype=float)


def kind(new: Entry, old: Entry) -> str:
    """The sections of the run in which two entries differ, "model, optim" say."""
    before, after = old.rows[-1]["run"], new.rows[-1]["run"]
    aside = (*NOT_IDENTITY, "device", "dtype", "head_dtype")
    with suppress(UserError):
        runs = [replace(load(Run, run), seed=0, threads=0, corpus="", device="cpu") for run in (before, after)]
        return ", ".join(sorted(sections_changed(*runs) - set(aside)))
    names = before.keys() | after.keys()
    return ", ".join(sorted(n for n in names - {"recipe", *aside} if before.get(n) != after.get(n)))


def standings(rows: Sequence[Row], ladder: Sequence[str]) -> list[Standing]:
    """Sort records by corpus (as they appear) and track; ladder: names of its rungs, the baseline first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["corpus"], row["track"]), []).append(row)
    corpora = list(dict.fromkeys(corpus for corpus, _ in groups))
    order = sorted(groups, key=lambda key: (corpora.index(key[0]), _track_order(key[1]), key[1]))
    return [_standing(corpus, track, groups[corpus, track], ladder) for corpus, track in order]


def _track_order(track: str) -> int:
    return TRACKS.index(track) if track in TRACKS else len(TRACKS)


def _standing(corpus: str, track: str, rows: Sequence[Row], ladder: Sequence[str]) -> Standing:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row["recipe"], row.get("overrides") or {}], sort_keys=True), []).append(row)
    this = Standing(corpus, track)
    for records in groups.values():
        entry = _newest(records)
        if set(entry.overrides) == {"steps"}:
            this.longer.append(entry)
        elif entry.overrides:
            this.swept.append(entry)
        elif entry.name in ladder:
            this.rungs.append(entry)
        elif entry.name.startswith(WITHOUT):
            this.without.append(entry)
        else:
            this.beside.append(entry)
    for entries in (this.rungs, this.longer):
        entries.sort(key=lambda entry: ladder.index(entry.name) if entry.name in ladder else -1)
    places = {WITHOUT + name: place for place, name in enumerate(ladder)}
    this.without.sort(key=lambda entry: places.get(entry.name, len(places)))
    for split in ("dev", "test"):
        # Rungs with other windows read other n-grams: the highest rung's count models stand for all.
        per_entry = [
            [row for row in entry.rows if row.get("anchor_split") == split and "anchor_kn3" in row]
            for entry in [*this.beside, *this.rungs]
        ]
        scored = next((found for found in reversed(per_entry) if found), [])
        if scored:
            this.anchors[split] = {name: float(np.mean([row[f"anchor_{name}"] for row in scored])) for name in ANCHORS}
    return this


def _newest(records: Sequence[Row]) -> Entry:
    """The records of the run that was recorded last, tested seeds only if there are any."""
    keys = [_experiment(row) for row in records]
    chosen: dict[int, Row] = {}
    for row, key in zip(records, keys, strict=True):
        if key == keys[-1]:
            old = chosen.get(row["seed"])
            if old is None or (old.get("test_loss") is None and row.get("test_loss") is not None):
                chosen[row["seed"]] = row
    rows = [chosen[seed] for seed in sorted(chosen)]
    tested = [row for row in rows if row.get("test_loss") is not None] or rows
    older = sum(key != keys[-1] for key in keys)
    return Entry(records[-1]["recipe"], tuple(tested), older, len(rows) - len(tested))


def _experiment(row: Row) -> str:
    run: Mapping[str, object] = row["run"]
    with suppress(UserError):
        run = dump(load(Run, row["run"]))
    fields = {name: value for name, value in run.items() if name not in NOT_IDENTITY}
    return json.dumps([fields, row.get("corpus_sha256")], sort_keys=True)
