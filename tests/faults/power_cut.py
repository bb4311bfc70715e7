"""Power cut: every state that a disk may be in, at every moment of saving, is given to the code that loads.

It must find what was there before, or what is new; and what is new, once saving has returned. tests/faults/bugs.py has
saving without its precautions, which must fail here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import forks
import runs
from forks import Line
from operations import Disk, State, write_state

from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.files import append_line, write_atomic
from hectogpt.model.weights import load_model, save_model
from hectogpt.training.checkpoint import Checkpoint, Checkpoints
from hectogpt.training.run import Run
from hectogpt.training.run_folder import RunFolder
from hectogpt.training.session import Session

REFUSED = "refused"


@dataclass(frozen=True)
class Saving:
    """Something that is saved. work: makes the folder as it was before, yields, saves. load: what is found, in words.
    before, after: what may be found while it is being saved, and once that has returned."""

    name: str
    work: Callable[[Path], Iterator[None]]
    load: Callable[[Path], str]
    before: tuple[str, ...]
    after: tuple[str, ...]


def states_of(saving: Saving, where: Path, most: int | None = None) -> tuple[int, list[str]]:
    """The number of different states of the disk while this is saved, and the wrong ones, in words; at most so many."""
    folder, copy = where / "disk" / "run", where / "cut" / "run"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    work = saving.work(folder)
    next(work)
    seen: dict[tuple[str, frozenset[tuple[str, bytes | None]]], State] = {}

    def keep(disk: Disk, phase: str = "before") -> None:
        for state in disk.states():
            seen.setdefault((phase, frozenset(state.items())), state)

    disk = Disk(folder, keep)
    next(work, None)
    disk.moment = lambda disk: None
    keep(disk, "after")
    wrong: list[str] = []
    for (phase, _), state in sorted(seen.items(), key=lambda item: item[0][0]):  # those after saving first
        if len(wrong) == most:
            break
        write_state(state, copy)
        found = saving.load(copy)
        if found not in (saving.before if phase == "before" else saving.after):
            wrong.append(f"{saving.name}, {'while it is saved' if phase == 'before' else 'once saved'}: {found}")
    shutil.rmtree(folder.parent)
    shutil.rmtree(copy.parent, ignore_errors=True)
    return len(seen), wrong


# --- what is saved ----------------------------------------------------------------------------------------------------


def checkpoint_saving(case: Run) -> Saving:
    """A checkpoint of step 8 beside those of steps 5, 6 and 7, of which the oldest is removed."""
    session = Session.open(replace(case, steps=10), runs.small_corpus())
    made: dict[int, Checkpoint] = {}
    for step in session.steps():
        made[step.number] = session.checkpoint()
    names = {runs.content_of(found): f"step {step}" for step, found in made.items()}

    def work(folder: Path) -> Iterator[None]:
        for step in (5, 6, 7):
            Checkpoints(folder).save(made[step])
        yield
        Checkpoints(folder).save(made[8])

    def load(folder: Path) -> str:
        try:
            found = Checkpoints(folder).newest(lambda note: None)
        except UserError as error:
            return f"nothing: {error.what}"
        return "nothing" if found is None else names.get(runs.content_of(found), "wrong data")

    return Saving("a checkpoint", work, load, ("step 7", "step 8"), ("step 8",))


def weights_saving(case: Run) -> Saving:
    """The weights of a run, in the place of others."""
    models = [Session.open(replace(case, seed=seed), runs.small_corpus()).model for seed in (1, 2)]
    names = {_hash_of(model): name for model, name in zip(models, ("old", "new"), strict=True)}

    def work(folder: Path) -> Iterator[None]:
        run = RunFolder(folder, case, False, ExitStack(), False)
        save_model(models[0], folder)
        run.seal()
        yield
        run.unseal()
        save_model(models[1], folder)
        run.seal()

    def load(folder: Path) -> str:
        try:
            return names.get(_hash_of(load_model(folder)), "wrong data")
        except UserError:
            return REFUSED

    return Saving("weights", work, load, ("old", "new", REFUSED), ("new",))


def _hash_of(model: Any) -> str:
    found = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def text_saving() -> Saving:
    """A file of text that is replaced (run.json, summary.json, metrics.jsonl when a run goes on)."""
    texts = {"old\n" * 100: "old", "new\n" * 100: "new"}

    def work(folder: Path) -> Iterator[None]:
        old, new = texts
        write_atomic(folder / "a.json", old)
        yield
        write_atomic(folder / "a.json", new)

    def load(folder: Path) -> str:
        return texts.get("".join(path.read_text() for path in folder.glob("a.json")), "wrong data")

    return Saving("a text", work, load, ("old", "new"), ("new",))


def record_saving(before: int) -> Saving:
    """A record that is appended to those of a comparison. before: how many there are."""
    rows = [json.dumps({"number": number, "text": "x" * 200}) for number in range(before + 1)]

    def load(folder: Path) -> str:
        lines = (folder / "a.jsonl").read_bytes().split(b"\n") if (folder / "a.jsonl").exists() else [b""]
        found = [line.decode(errors="replace") for line in lines[:-1]]
        whole = [row for row in rows if row in found]
        return str(len(whole)) if whole == rows[: len(whole)] else "wrong data"

    def work(folder: Path) -> Iterator[None]:
        if before:
            (folder / "a.jsonl").write_text("".join(row + "\n" for row in rows[:before]))
        yield
        append_line(folder / "a.jsonl", rows[before])

    return Saving(f"a record after {before}", work, load, (str(before), str(before + 1)), (str(before + 1),))


def corpus_saving(where: Path) -> Saving:
    """The token files of a text. A text without token files is tokenised again."""
    source = where / "text.txt"
    source.write_text("\n\n".join(f"Passage {number} of the text, and no other." for number in range(300)))
    expected = open_corpus(str(source), cache=where / "expected", progress=False).sha256

    def load(folder: Path) -> str:
        try:
            found = open_corpus(str(source), cache=folder, progress=False)
        except UserError as error:
            return f"{error.what}: {error.why}"
        return "right" if found.sha256 == expected else "wrong data"

    def work(folder: Path) -> Iterator[None]:
        yield
        open_corpus(str(source), cache=folder, progress=False)

    return Saving("token files", work, load, ("right",), ("right",))


def check(quick: bool) -> list[Line]:
    """The line of all that is saved; quick is the same."""
    with runs.place(10) as (where, cases):
        case, begun = cases["plain"], time.monotonic()
        savings = [checkpoint_saving(case), weights_saving(case), text_saving(), record_saving(0), record_saving(3)]
        savings.append(corpus_saving(where))
        numbers = range(len(savings))
        found = forks.spread(lambda n: forks.value_of(lambda: states_of(savings[n], where / str(n))), numbers)
        wrong = [fault for _, faults in found for fault in faults]
        return [forks.line("power cut", sum(count for count, _ in found), wrong, begun, "0 wrong")]
