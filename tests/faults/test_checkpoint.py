"""Checkpoints: written whole or not at all, every damage is found, what is another run's is refused."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, small_run
from runs import small_corpus
from safetensors.torch import save_file

from hectogpt import hardware
from hectogpt.data import Corpus
from hectogpt.errors import UserError
from hectogpt.files import write_manifest
from hectogpt.training.checkpoint import STATE, Checkpoints, put_state
from hectogpt.training.events import Stepped
from hectogpt.training.listeners import Saver
from hectogpt.training.optim import AdamW
from hectogpt.training.run import Data, Run
from hectogpt.training.run_folder import RunFolder
from hectogpt.training.session import Session


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return small_corpus()


def small(**changes: object) -> Run:
    return small_run(**{"model": replace(TINY, d_model=4, n_heads=1, n_layers=1, vocab_size=261), **changes})


def run_until(session: Session, step: int) -> Session:
    for _ in session.steps():
        if session.step == step:
            break
    return session


def test_another_text_another_run_and_other_groups_are_refused(corpus: Corpus) -> None:
    at = run_until(Session.open(small(), corpus), 2).checkpoint()
    other_text = replace(corpus, sha256=corpus.sha256 | {"train": "0" * 64})
    with pytest.raises(UserError, match="the text is not the one"):
        Session.open(small(), other_text, at)
    for changed in ({"seed": 1}, {"steps": 9}, {"optim": AdamW(lr=1e-4)}, {"data": Data(batch_size=4, seq_len=32)}):
        with pytest.raises(UserError, match="belongs to a different run"):
            Session.open(small(**changed), corpus, at)
    model = Session.open(small(), corpus)
    damaged: list[dict[str, Any]] = [{"optimizers": []}, {}, {"optimizers": [{"dict": {}}]}]
    for wrong in damaged:
        with pytest.raises(UserError, match="does not fit"):
            put_state(model.model, model.optimizer, at.tensors, wrong)


def test_what_differs_from_the_machine_before_is_told(corpus: Corpus) -> None:
    """Threads and dtypes are those that the run began with, unless others are asked for."""
    at = run_until(Session.open(small(), corpus), 2).checkpoint()
    assert Session.open(small(), corpus, at).differences(at.facts) == []
    at.facts["machine"] |= {"torch": "1.0", "head_dtype": "bfloat16"}
    at.facts["run"]["threads"] = 0  # as if nothing had been said, on a machine of one core
    session = Session.open(small(threads=0, head_dtype="auto"), corpus, at)
    assert (session.machine.threads, session.machine.head_dtype) == (1, torch.bfloat16)
    assert session.differences(at.facts) == [f"torch 1.0 -> {torch.__version__}"]


# --- on disk ----------------------------------------------------------------------------------------------------------


def fill(folder: Path, corpus: Corpus, steps: int = 4) -> Checkpoints:
    checkpoints, session = Checkpoints(folder), Session.open(small(), corpus)
    for step in session.steps():
        checkpoints.save(session.checkpoint())
        if step.number == steps:
            break
    return checkpoints


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-99])


def test_all_damaged_is_an_error_and_not_a_fresh_start(corpus: Corpus, tmp_path: Path) -> None:
    checkpoints = fill(tmp_path, corpus)
    for step in checkpoints.steps():
        damage(checkpoints.path(step) / STATE)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="every checkpoint"):
        checkpoints.newest(lambda line: None)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert Checkpoints(tmp_path / "none").newest(pytest.fail) is None


def test_a_damaged_step_is_saved_again(corpus: Corpus, tmp_path: Path) -> None:
    """Valid checkpoints are never removed for damaged ones; the newest three are kept."""
    checkpoints = fill(tmp_path, corpus)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in (2, 3, 4)]
    damage(tmp_path / "step-00000004" / STATE)
    notes: list[str] = []
    session = Session.open(small(), corpus, checkpoints.newest(notes.append))
    assert ("step 4" in notes[0], "step 3" in notes[0]) == (True, True), "which steps are computed again"
    assert run_until(session, 4).step == 4
    checkpoints.save(session.checkpoint())
    assert checkpoints.steps() == [2, 3, 4]
    assert not checkpoints.problem(4)


def test_a_foreign_state_with_right_hashes_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    checkpoints = fill(tmp_path, corpus, steps=2)
    folder = checkpoints.path(2)
    manifest = json.loads((folder / "manifest.json").read_text())
    facts: dict[str, Any] = {name: manifest[name] for name in ("format", "step", "values", "facts")}
    for content in ({}, {"history": torch.zeros(1, 6)}, {"model.embeddings.weight": torch.zeros(3)}):
        save_file(content, folder / STATE)
        write_manifest(folder, [STATE], facts)
        with pytest.raises(UserError):
            checkpoints.load(2)


# --- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("why", "said"), [("memory", "1,000 are free"), ("state", "is of type object")])
def test_what_cannot_be_saved_costs_the_checkpoints_not_the_run(
    why: str, said: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory for a copy, or with state that no file holds. The last state needs no copy."""
    session = Session.open(small(), corpus)
    if why == "memory":
        monkeypatch.setattr(hardware, "free_memory", lambda device="cpu": 1000)
    else:
        session.optimizer.optimizers[0].param_groups[0]["thing"] = object()
    notes: list[str] = []
    saver = Saver(session, RunFolder(tmp_path, session.run, False, ExitStack(), False), 1, notes.append)
    for step in session.steps():
        saver(Stepped(step, {}))
    assert (session.step, len(notes), said in notes[0]) == (6, 1, True)
    assert saver.folder.checkpoints.steps() == []
    if why == "memory":
        saver.save()
        assert saver.folder.checkpoints.steps() == [6]
