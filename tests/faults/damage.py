"""Damage: files cut short, single bits flipped, pages and tails of zeros. What is damaged must never be loaded.

A run in whose checkpoints, weights, metrics or manifests something has changed, and token files in which something has
changed: the code that loads must refuse them. Where there is an older checkpoint, that one is taken, and its loss told.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forks
import runs
from forks import Line

from hectogpt import errors
from hectogpt.cli.check import verify_run
from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.python import load
from hectogpt.run_records import CHECKPOINTS
from hectogpt.training.checkpoint import Checkpoints
from hectogpt.training.run import Run

PAGE = 4096
KINDS = ("a cut", "a flipped bit", "a page of zeros", "a tail of zeros")
Target = tuple[Path, Callable[[], str]]  # a file, and what is wrong with how damage of it is met; "" if it is refused


def check(quick: bool) -> list[Line]:
    """All lines. quick: a tenth of the tries."""
    with runs.place(4) as (where, cases):
        return [damaged(where, cases["plain"], 80 if quick else 800)]


def damaged(where: Path, case: Run, count: int) -> Line:
    """The line of so many damages. Each worker has a run of its own."""
    made: dict[str, list[Target]] = {}

    def work(number: int) -> list[str]:
        if not made:
            folder = where / f"damage {number}"
            folder.mkdir()
            made["here"] = list(targets(folder, case))
        path, notices = made["here"][number // len(KINDS) % len(made["here"])]
        content, chance, kind = path.read_bytes(), random.Random(number), KINDS[number % len(KINDS)]
        changed = content
        while changed == content:  # a page that was zero before, say
            changed = spoil(kind, content, chance)
        faults = [] if notices() else [f"{path.name} is refused though it is sound"]
        path.write_bytes(changed)
        fault = notices()
        path.write_bytes(content)
        return faults + ([f"{kind} in {path.name}: {fault}"] if fault else [])

    return forks.over("damage", work, range(count), "0 loaded")


def spoil(kind: str, content: bytes, chance: random.Random) -> bytes:
    """The content cut short, with another bit, with an aligned page of zeros, or with zeros from some place to the end,
    as after a loss of power."""
    size, at = len(content), chance.randrange(len(content))
    page = at // PAGE * PAGE
    start, end, new = {
        "a cut": (at, size, b""),
        "a flipped bit": (at, at + 1, bytes([content[at] ^ 1 << chance.randrange(8)])),
        "a page of zeros": (page, page + PAGE, bytes(min(PAGE, size - page))),
        "a tail of zeros": (at, size, bytes(size - at)),
    }[kind]
    return content[:start] + new + content[end:]


def targets(where: Path, case: Run) -> Iterator[Target]:
    """The files of a run's folder and token files, and who reads each of them."""
    run, source = where / "run", where / "text.txt"
    runs.train(case, run)
    source.write_text("\n\n".join(f"Passage {number} of the text, and no other." for number in range(2000)))

    def read() -> Path:
        return open_corpus(str(source), cache=where / "tokens", progress=False).folder

    saved = Checkpoints(run / CHECKPOINTS)
    before, newest = saved.steps()[-2:]
    yield from ((path, lambda: newest_is_refused(saved, newest, before)) for path in saved.path(newest).iterdir())
    for name in ("config.json", "model.safetensors", "manifest.json"):
        yield run / name, lambda: refused(lambda: load(run), errors.CHECKPOINT)
    for name in ("metrics.jsonl", "run.json", "summary.json"):
        yield run / name, lambda: "" if any(verify_run(run).values()) else "found sound"
    yield from ((path, lambda: refused(read, errors.DATA)) for path in sorted(read().iterdir()))


def refused(loader: Callable[[], Any], code: int) -> str:
    """ "" if loading raises the UserError with this code."""
    try:
        loader()
    except UserError as error:
        return "" if error.code == code else f"refused with exit code {error.code}: {error.what}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def newest_is_refused(checkpoints: Checkpoints, step: int, before: int) -> str:
    """ "" if the damaged checkpoint of the step is refused, and the one before it taken with a note."""
    notes: list[str] = []
    if fault := refused(lambda: checkpoints.load(step), errors.CHECKPOINT):
        return fault
    try:
        found = checkpoints.newest(notes.append)
    except UserError as error:
        return f"the checkpoint before it is not found: {error.what}"
    if found is None or found.step != before:
        return f"going on from {None if found is None else found.step}, not {before}"
    return "" if notes and str(before) in notes[0] else "nobody is told"
