"""Damage: files cut short, single bits flipped, pages and tails of zeros. What is damaged must never be loaded.

The files of a run's checkpoint and of its folder, and token files: the code that loads must refuse them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import hostile
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


def check(quick: bool) -> list[Line]:
    """All lines. quick: a tenth of the tries."""
    with runs.place(4) as (where, cases):
        return [damaged(where, cases["plain"], 80 if quick else 800)]


def damaged(where: Path, case: Run, count: int) -> Line:
    """The line of so many damages."""
    return hostile.line_of("damage", damage_tries(where, case, count), must_refuse=True)


def damage_tries(where: Path, case: Run, count: int) -> Iterator[hostile.Try]:
    """Each file is damaged in each way, at random places."""
    found = list(targets(where, case))
    for _, read, code in found:
        refused_with(code, read)
    for number in range(count):
        path, read, code = found[number // len(KINDS) % len(found)]
        content, chance, kind = path.read_bytes(), random.Random(number), KINDS[number % len(KINDS)]
        changed = content
        while changed == content:  # a page that was zero before, say
            changed = spoil(kind, content, chance)
        path.write_bytes(changed)
        yield f"{kind} in {path.name}", partial(refused_with, code, read), len(content)
        path.write_bytes(content)


def refused_with(code: int, read: Callable[[], object]) -> None:
    """Read; if that is refused, then with this exit code."""
    try:
        read()
    except UserError as error:
        assert error.code == code  # noqa: PT017
        raise


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


def targets(where: Path, case: Run) -> Iterator[tuple[Path, Callable[[], object], int]]:
    """The files of a run's folder and token files, who reads each of them, and the exit code if it is damaged."""
    run, source = where / "run", where / "text.txt"
    runs.train(case, run)
    source.write_text("\n\n".join(f"Passage {number} of the text, and no other." for number in range(2000)))

    def tokens() -> Path:
        return open_corpus(str(source), cache=where / "tokens", progress=False).folder

    def verify() -> None:
        if any(verify_run(run).values()):
            raise UserError("it is damaged", code=errors.CHECKPOINT)

    saved = Checkpoints(run / CHECKPOINTS)
    newest = saved.steps()[-1]
    yield from ((path, lambda: saved.load(newest), errors.CHECKPOINT) for path in saved.path(newest).iterdir())
    for name in ("config.json", "model.safetensors", "manifest.json"):
        yield run / name, lambda: load(run), errors.CHECKPOINT
    for name in ("metrics.jsonl", "run.json", "summary.json"):
        yield run / name, verify, errors.CHECKPOINT
    yield from ((path, tokens, errors.DATA) for path in sorted(tokens().iterdir()))
