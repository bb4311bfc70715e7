"""Trackers get what metrics.jsonl gets, and their faults do not reach the run."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from command import TINY, hectogpt
from helpers import write_tokens

from hectogpt.training import trackers as module
from hectogpt.training.trackers import Trackers

FIELDS = {"run": {"seed": 1, "model": {"d_model": 16}}}


@pytest.mark.parametrize("place", ["init", "log"])
def test_a_tracker_that_fails_is_left_out_with_one_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A library of somebody else's that is called wandb, and that ends the process or raises."""
    bodies = {"init": "pass", "log": "pass"} | {place: "import sys; sys.exit('no key')"}
    (tmp_path / "wandb.py").write_text(
        "class Run:\n    url, dir = 'stub', '.'\n"
        f"    def log(self, values, step): {bodies['log']}\n    def finish(self): pass\n"
        f"def init(**options):\n    {bodies['init']}\n    return Run()\ndef Image(path): return path\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    notes: list[str] = []
    trackers = Trackers(["wandb"], notes.append, tmp_path, FIELDS)
    for step in range(1, 5):
        trackers.add({"step": step, "train/loss": 5.0 / step})
    trackers.close()
    assert notes == ["note: the tracker wandb is left out: SystemExit: no key; the run goes on"]
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.thorough
def test_tensorboard_reads_the_rows_and_a_resumed_run_replaces_later_ones(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for first, last, value in ((1, 6, 1.0), (4, 8, 2.0)):  # the second process goes on after step 3
        notes: list[str] = []
        trackers = Trackers(["tensorboard"], notes.append, tmp_path, FIELDS, first - 1)
        for step in range(first, last):
            trackers.add({"step": step, "train/loss": value})
        trackers.close()
        time.sleep(1.1)  # event files are ordered by their second
        assert notes == [f"tensorboard: tensorboard --logdir {tmp_path}"]
    steps = {"train/loss": [(1, 1.0), (2, 1.0), (3, 1.0), *((step, 2.0) for step in range(4, 8))]}
    assert scalars(tmp_path / "tensorboard") == steps


@pytest.mark.thorough
def test_a_tracked_run_has_the_same_bits_and_all_of_it_is_tracked(tmp_path: Path) -> None:
    for name in module.TRACKERS:
        pytest.importorskip(name)
    options = ["baseline", *TINY, "--corpus", write_tokens(tmp_path / "t")]
    more = {"WANDB_MODE": "offline"}
    done = hectogpt("train", *options, "--out", "one", "--track", "tensorboard,wandb", "--json", cwd=tmp_path, **more)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)  # nothing that they print
    assert hectogpt("train", *options, "--out", "two", "--quiet", cwd=tmp_path).returncode == 0
    assert "left out" not in done.stderr
    for link in ("tensorboard --logdir", "wandb sync"):
        assert link in done.stderr
    one = tmp_path / "one"
    assert (one / "model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    rows = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    found = scalars(one / "tensorboard")
    assert [value for _, value in found["train/loss"]] == pytest.approx(losses)
    assert found["dev/loss"][0][1] == pytest.approx(rows[-1]["dev/loss"])
    assert list((one / "wandb").glob("offline-run-*/run-*.wandb"))
