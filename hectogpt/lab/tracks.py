"""Tracks (sets of rules for a comparison), and a check for the rules that a trial breaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hectogpt.data import Corpus
from hectogpt.errors import unknown
from hectogpt.training.run import Run

Scoring = Literal["alone", "counting"]  # the ways in which a track scores


@dataclass(frozen=True)
class Track:
    """The rules that a trial is checked against; None means no limit.

    Attributes:
        steps: the exact number of optimizer steps.
        tokens: the most training tokens, none of which may be read twice.
        parameters: the most parameters.
        seconds: the most seconds of building and training.
        cores: the most threads.
        allows_gpu: True if a GPU may train.
        scoring: how a trained model is scored: by itself, or mixed with the best counting of what
            it read (lab/best_counting.py).
    """

    name: str
    steps: int
    tokens: int | None
    parameters: int | None
    seconds: int | None
    cores: int | None
    allows_gpu: bool
    scoring: Scoring = "alone"


TRACKS: dict[str, Track] = {
    track.name: track
    for track in (
        Track("closed", 100, 819_200, 60_000_000, 600, 2, allows_gpu=False),
        Track("minute", 100, 819_200, 60_000_000, 60, 2, allows_gpu=False),
        Track("closed+counting", 100, 819_200, 60_000_000, 600, 2, False, "counting"),
        Track("open-cpu", 100, None, None, 600, 2, allows_gpu=False),
        Track("open-gpu", 100, None, None, None, None, allows_gpu=True),
    )
}


def find_track(name: str) -> Track:
    """The track of this name. Raises UserError for an unknown one, with the nearest known name."""
    if name not in TRACKS:
        raise unknown(f"unknown track {name!r}", name, TRACKS)
    return TRACKS[name]


@dataclass(frozen=True)
class Taken:
    """The costs of a trial, as far as known. `again` is True if text was read twice."""

    steps: int
    tokens: int
    again: bool = False
    params: int | None = None
    seconds: float | None = None
    threads: int | None = None
    gpu: bool = False


def rules_broken(rules: Track, taken: Taken) -> list[str]:
    """The rules that a trial breaks, as sentences. A cost that is not known (None) breaks none."""
    limits = {
        "training tokens": (taken.tokens, rules.tokens),
        "parameters": (taken.params, rules.parameters),
        "s": (taken.seconds, rules.seconds),
        "threads": (taken.threads, rules.cores),
    }
    broken = {f"{taken.steps} steps, not {rules.steps}": taken.steps != rules.steps}
    broken |= {
        f"{n:,.0f} {what}, at most {most:,}": n > most
        for what, (n, most) in limits.items()
        if n and most
    }
    broken |= {
        "training text read more than once": taken.again and rules.tokens is not None,
        "trained on a GPU": taken.gpu and not rules.allows_gpu,
    }
    return [words for words, is_broken in broken.items() if is_broken]


def broken_rules(
    track: Track,
    run: Run,
    corpus: Corpus,
    params: int | None = None,
    seconds: float | None = None,
    machine: Mapping[str, Any] | None = None,
) -> list[str]:
    """The rules of the track that a run breaks, as sentences.

    `machine` says where it ran, as in a record: `kind` ("cpu", "cuda") and `threads`.
    """
    machine = machine or {}
    rows = run.steps * run.data.batch_size
    taken = Taken(
        steps=run.steps,
        tokens=rows * run.data.seq_len,
        again=run.data.order.repeats or rows > len(corpus.tokens["train"]) // run.data.seq_len,
        params=params,
        seconds=seconds,
        threads=machine.get("threads"),
        gpu=machine.get("kind") == "cuda",
    )
    return rules_broken(track, taken)
