"""A session: the command line, a trial and Python give one definition of every number, and the same ones."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import TINY as TINY_OPTIONS
from command import Here
from experiments import run_trial
from helpers import TINY, small_run, train
from torch import Tensor, nn

import hectogpt
from hectogpt import InputPart, Norm, hardware
from hectogpt.data import Corpus
from hectogpt.training.run import Data
from hectogpt.training.run_folder import read_run
from hectogpt.training.session import Session


def numbers(summary: dict[str, object]) -> dict[str, object]:
    """What must not depend on who drives the run."""
    own = ("seconds", "peak_mb", "losses", "grad_norms", "status", "error", "version", "commit", "dirty")
    return {key: value for key, value in summary.items() if key not in own}


def test_command_line_trial_and_python_give_one_definition(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.perf_counter()
    options = ["--dtype", "float32", "--head-dtype", "float32", "--out", "out", "--quiet"]
    done = Here(tmp_path, monkeypatch, capsys)("train", "baseline", "--corpus", corpus.name, *TINY_OPTIONS, *options)
    wall = time.perf_counter() - begun
    assert done.returncode == 0, done.stderr
    monkeypatch.undo()
    run = read_run(tmp_path / "out")
    commanded = json.loads((tmp_path / "out" / "summary.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train/loss" in row]
    here = train(run, corpus)
    seen: list[tuple[int, float]] = []
    tried = run_trial(run, corpus, lambda step, loss: seen.append((step, loss)))

    assert seen == list(enumerate(here.losses, start=1))
    summary = json.loads(json.dumps(here.summary()))
    assert numbers(tried) == numbers(summary)
    for name, value in numbers(summary).items():
        assert commanded[name] == value, name
    assert [row["train/loss"] for row in steps] == list(here.losses)
    assert [row["train/grad_norm"] for row in steps] == list(here.grad_norms)
    assert tried["losses"] == [float(f"{loss:.5g}") for loss in here.losses]
    training = sum(row["train/dt"] for row in steps)
    assert training < commanded["seconds"] < wall, "scoring and the picture are not in it"
    assert all(0 < seconds < 100 for seconds in (tried["seconds"], here.seconds))
    for peak in (commanded["peak_mb"], tried["peak_mb"], here.peak_mb):
        assert 50 < peak <= hardware.peak_memory_mb() + 500


def test_a_result_says_what_the_run_came_to(corpus: Corpus) -> None:
    run = small_run(steps=12, data=Data(batch_size=2, seq_len=32))
    session = Session.open(run, corpus)
    assert (session.result().losses, session.result().dev_loss) == ((), None)
    steps = list(session.steps())
    score = session.evaluate("dev")
    result = session.result()
    assert result.train_tokens == 12 * 2 * 32
    assert (result.dev_loss, result.scores) == (score.loss, {"dev": score})
    assert result.train_loss_last == steps[-1].loss
    assert result.train_loss_last10 == pytest.approx(np.mean([step.loss for step in steps[2:]]))
    assert result.params == sum(p.numel() for p in result.model.parameters())
    summary = result.summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert (summary["dev_loss"], summary["dev_bpb"]) == (score.loss, score.bits_per_byte)


def test_scores_on_the_way_change_no_bit(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a folder too; the last step is scored anyway."""
    plain, scored = (hectogpt.train(small_run(steps=2), corpus=corpus, eval_every=every) for every in (0, 1))
    assert plain.losses == scored.losses
    assert plain.scores == scored.scores
    for one, two in zip(plain.model.parameters(), scored.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert capsys.readouterr().err.count(": held-out loss") == 1


@dataclass(frozen=True)
class Idle(InputPart):
    """A part with a weight that no loss reaches."""

    def build(self, d_model: int, vocab_size: int, norm: Norm) -> nn.Module:
        return IdleLayer()


class IdleLayer(nn.PReLU):
    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:  # type: ignore[override]
        return x


def test_a_part_that_never_moves_is_named(corpus: Corpus) -> None:
    session = Session.open(small_run(steps=2, model=replace(TINY, inputs=(Idle(),))), corpus)
    assert "lm_head.weight" in session.unmoved()
    list(session.steps())
    assert session.unmoved() == ["inputs.0.weight"]
