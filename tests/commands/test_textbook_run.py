"""Agreement with the textbook: its training loop, in a process of its own, gives the losses and norms of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, write_tokens

from hectogpt.data import open_corpus
from hectogpt.lab import recipes
from hectogpt.training.optim import AdamW
from hectogpt.training.run import Data, Run
from hectogpt.training.session import Session


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("text") / "train.bin")


def assert_same_run(run: Run, token_file: Path, log: Path) -> None:
    theirs = [json.loads(line) for line in log.read_text().splitlines()]
    corpus = open_corpus(str(token_file), cache=log.parent / "cache")
    whole = np.fromfile(token_file, "<u2")  # the textbook trains on all of a file
    session = Session.open(run, replace(corpus, tokens=corpus.tokens | {"train": whole}))
    ours = list(session.steps())
    assert len(theirs) == len(ours) == run.steps
    for step, line in zip(ours, theirs, strict=True):
        assert step.loss == pytest.approx(line["loss"], abs=1e-4)
        assert step.grad_norm == pytest.approx(line["grad_norm"], rel=1e-4)


def test_same_losses_and_norms_as_the_textbook_s_loop(token_file: Path, tmp_path: Path, reference: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = [sys.executable, ROOT / "tests" / "programs" / "textbook_run.py", reference, token_file, log]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    run = replace(recipes.recipe("baseline"), optim=AdamW(lr=1e-3), steps=6, data=Data(2, 64), device="cpu")
    assert_same_run(replace(run, model=replace(run.model, context_length=64)), token_file, log)


@pytest.mark.slow
def test_baseline_reproduces_the_textbook_s_hundred_steps(token_file: Path, tmp_path: Path, reference: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = [sys.executable, str(reference / "train.py"), "--data", str(token_file), "--log", str(log)]
    subprocess.run([*command, "--save-path", str(tmp_path / "p.png")], check=True, capture_output=True, cwd=tmp_path)
    assert_same_run(replace(recipes.recipe("baseline"), device="cpu"), token_file, log)
