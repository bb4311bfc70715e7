"""TensorBoard gets what metrics.jsonl gets, and its faults do not reach the run."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import TINY, Here, assert_good_error, hectogpt
from helpers import write_tokens

from hectogpt import errors
from hectogpt.training.events import Ended, Stepped
from hectogpt.training.listeners import tracker
from hectogpt.training.loop import Step

FIELDS = {"run": {"seed": 1, "model": {"d_model": 16}}}


def test_what_is_not_there_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_good_error(here("train", "--track", "tensorboard"), errors.USAGE, "is not installed", "pip install")
    assert list(tmp_path.iterdir()) == []


def stepped(number: int, loss: float) -> Stepped:
    return Stepped(Step(number, number * 64, loss, 1.0, 0.1, 0.5, 64), {})


@pytest.mark.parametrize("place", ["open", "add"])
def test_a_tracker_that_fails_is_left_out_with_one_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A library of somebody else's, that ends the process or raises."""
    writer = SimpleNamespace(add_text=lambda *_: None)
    library = SimpleNamespace(SummaryWriter=lambda *_, **__: sys.exit("no key") if place == "open" else writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", library)
    notes: list[str] = []
    track = tracker(tmp_path, FIELDS, 0, notes.append)
    for step in range(1, 5):
        track(stepped(step, 5.0 / step))
    track(Ended("done"))
    (note,) = notes
    assert ("SystemExit: no key" if place == "open" else "AttributeError: ") in note


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
        track = tracker(tmp_path, FIELDS, first - 1, notes.append)
        for step in range(first, last):
            track(stepped(step, value))
        track(Ended("done"))
        time.sleep(1.1)  # event files are ordered by their second
        assert notes == [f"tensorboard: tensorboard --logdir {tmp_path}"]
    steps = [(1, 1.0), (2, 1.0), (3, 1.0), *((step, 2.0) for step in range(4, 8))]
    assert scalars(tmp_path / "tensorboard")["train/loss"] == steps


@pytest.mark.thorough
def test_a_tracked_run_has_the_same_bits_and_all_of_it_is_tracked(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    options = ["baseline", *TINY, "--corpus", write_tokens(tmp_path / "t")]
    done = hectogpt("train", *options, "--out", "one", "--track", "tensorboard", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)  # nothing that it prints
    assert hectogpt("train", *options, "--out", "two", "--quiet", cwd=tmp_path).returncode == 0
    assert "left out" not in done.stderr
    assert "tensorboard --logdir" in done.stderr
    one = tmp_path / "one"
    assert (one / "model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    rows = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    found = scalars(one / "tensorboard")
    assert [value for _, value in found["train/loss"]] == pytest.approx(losses)
    assert found["dev/loss"][0][1] == pytest.approx(rows[-1]["dev/loss"])
