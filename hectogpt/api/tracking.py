"""What `train --track` and `compare --trackers` tell trackers: rows as they are written, pictures at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hectogpt.api.scoring import PICTURE
from hectogpt.lab.record import Record
from hectogpt.serialization import dump
from hectogpt.training.run_folder import RunFolder
from hectogpt.training.session import Session
from hectogpt.training.trackers import Trackers


@contextmanager
def tracking(names: Sequence[str], session: Session, folder: RunFolder, note: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile the trackers hear of every row of the run; at the end they get its pictures, and their links are told.

    Nothing that happens in them, or to them, ends the run.
    """
    if not names:
        yield
        return
    trackers = Trackers(names, note)
    try:
        trackers.begin(
            folder.path, {"run": dump(session.run), "machine": session.machine.describe()}, step=session.step
        )
        folder.heard = trackers.add
        yield
        trackers.picture("curves", folder.path / PICTURE, session.step)
        trackers.end()
    finally:
        folder.heard = lambda row: None
        trackers.end()
        for name, link in trackers.links.items():
            note(f"{name}: {link}")


def track_records(names: Sequence[str], records: Sequence[Record], out: Path, note: Callable[[str], None]) -> None:
    """Tell trackers of the trials of a comparison, each as a run of the group that is named as `out` is."""
    if not names or not records:
        return
    trackers = Trackers(names, note)
    try:
        for record in records:
            name = f"{record.arm or record.recipe}, seed {record.seed}"
            fields = {"run": record.run, "corpus": record.corpus, "track": record.track, "machine": record.machine}
            trackers.begin(out.parent, fields, name=name, group=out.stem, lasting=False)
            for row in rows_of(record):
                trackers.add(row)
    finally:
        trackers.end()
        for name, link in trackers.links.items():
            note(f"{name}: {link}")


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
