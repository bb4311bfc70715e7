"""What `compare --trackers` gives to trackers: each trial of a comparison as a run of a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hectogpt.lab.record import Record
from hectogpt.training.trackers import Trackers


def track_records(names: Sequence[str], records: Sequence[Record], out: Path, note: Callable[[str], None]) -> None:
    """Give trackers the trials of a comparison, each as a run of the group that is named as `out` is."""
    if not names or not records:
        return
    trackers = Trackers(names, note)
    for record in records:
        name = f"{record.arm or record.recipe}, seed {record.seed}"
        fields = {"run": record.run, "corpus": record.corpus, "track": record.track, "machine": record.machine}
        trackers.begin(out.parent, fields, name=name, group=out.stem)
        for row in rows_of(record):
            trackers.add(row)
        trackers.end()
    trackers.say_links()


def rows_of(record: Record) -> list[dict[str, Any]]:
    """A trial's record as rows of a metrics.jsonl."""
    rows: list[dict[str, Any]] = [
        {"step": step, "train/loss": loss, "train/grad_norm": norm}
        for step, (loss, norm) in enumerate(zip(record.losses, record.grad_norms, strict=False), start=1)
        if loss is not None and norm is not None
    ]
    held_out = {"dev/loss": record.dev_loss, "dev/bpb": record.dev_bpb, "test/loss": record.test_loss}
    held_out |= {"seconds": record.seconds}
    rows.append({"step": len(record.losses)} | {name: value for name, value in held_out.items() if value is not None})
    return rows
