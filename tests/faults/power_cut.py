"""Power cut: every state that a disk may be in, at every moment of saving, is given to the code that loads.

It must find what was there before, or what is new; and what is new, once saving has returned. tests/faults/bugs.py has
saving without its precautions, which must fail here.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import forks
import runs
import torch
from operations import Disk, State, write_state

from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.files import append_line, write_atomic
from hectogpt.model.weights import load_model, save_model
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.run import Run
from hectogpt.training.run_folder import OURS, RunFolder
from hectogpt.training.session import Session


@dataclass(frozen=True)
class Saving:
    """Something that is saved in a folder, which holds the old one before. load: "old", "new", or what else it finds.
    refused: whether it may be refused while it is being saved."""

    name: str
    save_old: Callable[[Path], object]
    save_new: Callable[[Path], object]
    load: Callable[[Path], str]
    refused: bool = False


def states_of(saving: Saving, where: Path) -> tuple[int, list[str]]:
    """The number of different states of the disk while this is saved, and the wrong ones, in words."""
    folder, copy = where / "disk" / "run", where / "cut" / "run"
    folder.mkdir(parents=True)
    saving.save_old(folder)
    during: set[State] = set()
    disk = Disk(folder, lambda disk: during.update(disk.states()))
    saving.save_new(folder)
    disk.look()
    after = set(disk.states())
    disk.moment = lambda disk: None
    wrong: list[str] = []
    allowed = ("old", "new", *(["refused"] if saving.refused else []))
    for states, good in ((after, ("new",)), (during, allowed)):
        for state in states:
            write_state(state, copy)
            try:
                found = saving.load(copy)
            except UserError as error:
                found = "refused" if saving.refused else f"{error.what}: {error.why}"
            if found not in good:
                wrong.append(f"{'once saved' if states is after else 'while it is saved'}: {found}")
    shutil.rmtree(where)
    return len(during) + len(after), wrong


# --- what is saved ----------------------------------------------------------------------------------------------------


def checkpoint_saving(case: Run) -> Saving:
    """A checkpoint of step 8 beside those of steps 5, 6 and 7, of which the oldest is removed."""
    session = Session.open(replace(case, steps=10), runs.small_corpus())
    made: dict[int, Checkpoint] = {step.number: session.checkpoint() for step in session.steps()}
    names = {runs.content_of(made[7]): "old", runs.content_of(made[8]): "new"}

    def save_old(folder: Path) -> None:
        for step in (5, 6, 7):
            Checkpoints(folder).save(made[step])

    def load(folder: Path) -> str:
        found = Checkpoints(folder).newest(lambda note: None)
        return "nothing" if found is None else names.get(runs.content_of(found), "wrong data")

    return Saving("a checkpoint", save_old, lambda folder: Checkpoints(folder).save(made[8]), load)


def weights_saving(case: Run) -> Saving:
    """The weights of a run, in the place of others."""
    models = [Session.open(replace(case, seed=seed), runs.small_corpus()).model for seed in (1, 2)]

    def save(number: int, folder: Path) -> None:
        run = RunFolder(folder, case, False, ExitStack(), False)
        run.unseal()
        save_model(models[number], folder)
        run.seal(OURS)

    def load(folder: Path) -> str:
        found = load_model(folder).state_dict()
        same = [all(torch.equal(found[name], t) for name, t in model.state_dict().items()) for model in models]
        return "old" if same[0] else "new" if same[1] else "wrong data"

    return Saving("weights", lambda folder: save(0, folder), lambda folder: save(1, folder), load, refused=True)


def text_saving() -> Saving:
    """A file of text that is replaced (run.json, summary.json, metrics.jsonl when a run is resumed)."""

    def save(content: str) -> Callable[[Path], object]:
        return lambda folder: write_atomic(folder / "a.json", f"{content}\n" * 100)

    def load(folder: Path) -> str:
        lines = (folder / "a.json").read_text().splitlines()
        return lines[0] if lines[:1] * 100 == lines else "wrong data"

    return Saving("a text", save("old"), save("new"), load)


def record_saving(before: int) -> Saving:
    """A record that is appended to those of a comparison. before: how many there are."""
    rows = [json.dumps({"number": number, "text": "x" * 200}) for number in range(before + 1)]

    def save_old(folder: Path) -> None:
        if before:
            (folder / "a.jsonl").write_text("".join(row + "\n" for row in rows[:before]))

    def load(folder: Path) -> str:
        text = "".join(path.read_bytes().decode(errors="replace") for path in folder.glob("a.jsonl"))
        whole = [row for row in text.split("\n")[:-1] if row in rows]
        return "new" if whole == rows else "old" if whole == rows[:before] else "wrong data"

    return Saving(
        f"record {before + 1} of a file", save_old, lambda folder: append_line(folder / "a.jsonl", rows[before]), load
    )


def corpus_saving(where: Path) -> Saving:
    """The token files of a text. A text without token files is tokenised again."""
    source = where / "text.txt"
    source.write_text("\n\n".join(f"Passage {number} of the text, and no other." for number in range(400)))

    def tokenise(folder: Path) -> dict[str, str]:
        return open_corpus(str(source), cache=folder, progress=False).sha256

    expected = tokenise(where / "expected")
    return Saving(
        "token files", lambda _: None, tokenise, lambda folder: "new" if tokenise(folder) == expected else "wrong data"
    )


def check(quick: bool) -> list[forks.Line]:
    """A line for all that is saved; quick is the same."""
    with runs.place(10) as (where, cases):
        case, lines = cases["plain"], []
        savings = [checkpoint_saving(case), weights_saving(case), text_saving(), record_saving(0), record_saving(3)]
        for saving in [*savings, corpus_saving(where)]:
            begun = time.monotonic()
            count, wrong = forks.value_of(lambda saving=saving: states_of(saving, where / "cut"))
            lines.append(forks.Line(f"power cut, {saving.name}", count, wrong, time.monotonic() - begun))
        return lines
