"""The tracks: sets of rules for a comparison, and a check of which rules a trial breaks. Nothing else names a track."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.lab.mixing import Scoring
from hectogpt.serialization import did_you_mean
from hectogpt.training.run import Run


@dataclass(frozen=True)
class Track:
    """The rules that a trial is checked against. None: no limit.

    steps: exact number of optimizer steps. tokens: most training tokens, none of them read twice. parameters: most
    parameters. seconds: most seconds of building and training. cores: most threads. allows_counts: whether weights may
    start from counts of the training text. allows_gpu: whether a GPU may train. scoring: how a trained model is scored:
    by itself, or with n-grams of what it read, looking up what it read, or learning from what it has scored
    (lab/mixing.py).
    """

    name: str
    steps: int
    tokens: int | None
    parameters: int | None
    seconds: int | None
    cores: int | None
    allows_counts: bool
    allows_gpu: bool
    scoring: Scoring = "alone"


TRACKS: dict[str, Track] = {
    track.name: track
    for track in (
        Track("closed", 100, 819_200, 60_000_000, 600, 2, allows_counts=False, allows_gpu=False),
        Track("minute", 100, 819_200, 60_000_000, 60, 2, allows_counts=False, allows_gpu=False),
        Track("closed+counting", 100, 819_200, 60_000_000, 600, 2, False, False, "counting"),
        Track("retrieval", 100, 819_200, 60_000_000, 600, 2, False, False, "retrieval"),
        Track("adaptive", 100, 819_200, 60_000_000, 600, 2, False, False, "adaptive"),
        Track("closed+statistics", 100, 819_200, 60_000_000, 600, 2, allows_counts=True, allows_gpu=False),
        Track("open-cpu", 100, None, None, 600, 2, allows_counts=True, allows_gpu=False),
        Track("open-gpu", 100, None, None, None, None, allows_counts=True, allows_gpu=True),
    )
}


def find_track(name: str) -> Track:
    """The track of this name. Raises UserError with the nearest name for one that does not exist."""
    if name not in TRACKS:
        raise UserError(f"unknown track {name!r}", why=f"tracks: {', '.join(TRACKS)}", fix=did_you_mean(name, TRACKS))
    return TRACKS[name]


def broken_rules(
    track: Track,
    run: Run,
    corpus: Corpus,
    params: int | None = None,
    seconds: float | None = None,
    machine: Mapping[str, Any] | None = None,
) -> list[str]:
    """Which of the track's rules a trial breaks, in words; [] if none. What is not known yet (None) breaks none.

    machine: what the trial ran on, as a record has it: `kind` ("cpu", "cuda") and `threads`.
    """
    broken = []
    if run.steps != track.steps:
        broken.append(f"{run.steps} steps, not {track.steps}")
    rows = run.steps * run.data.batch_size
    if track.tokens is not None and rows * run.data.seq_len > track.tokens:
        broken.append(f"{rows * run.data.seq_len:,} training tokens, at most {track.tokens:,}")
    again = run.data.order.repeats or rows > len(corpus.tokens["train"]) // run.data.seq_len
    if track.tokens is not None and again:
        broken.append("training text read more than once")
    if track.parameters is not None and (params or 0) > track.parameters:
        broken.append(f"{params:,} parameters, at most {track.parameters:,}")
    if run.init_from_counts is not None and not track.allows_counts:
        broken.append("a start from counts of the training text")
    if track.seconds is not None and (seconds or 0) > track.seconds:
        broken.append(f"{seconds:.0f} s, at most {track.seconds}")
    machine = machine or {}
    if machine.get("kind", "cpu") == "cuda" and not track.allows_gpu:
        broken.append("trained on a GPU")
    if track.cores is not None and (machine.get("threads") or 0) > track.cores:
        broken.append(f"{machine['threads']} threads, at most {track.cores}")
    return broken
