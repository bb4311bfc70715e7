"""Damage: files cut short, single bits flipped, pages and tails of zeros. What is damaged must never be loaded.

A run in whose checkpoints, weights, metrics or manifests something has changed, and token files in which something has
changed: the code that loads must refuse them. Where there is an older checkpoint, that one is taken, and its loss told.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forks
import small_runs
from promises import Line
from small_runs import Case

from hectogpt import errors
from hectogpt.data import open_corpus
from hectogpt.errors import UserError
from hectogpt.python import load
from hectogpt.run_records import CHECKPOINTS
from hectogpt.training.checkpoint import Checkpoints

PAGE = 4096
CUTS = FLIPS = PAGES = TAILS = 200
QUICK = 20  # of each


def cut(content: bytes, chance: random.Random) -> bytes:
    """The file without its end."""
    return content[: chance.randrange(len(content))]


def flip(content: bytes, chance: random.Random) -> bytes:
    """One bit is another."""
    changed, place = bytearray(content), chance.randrange(len(content))
    changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def zero_page(content: bytes, chance: random.Random) -> bytes:
    """An aligned page of zeros."""
    start = chance.randrange(len(content)) // PAGE * PAGE
    end = min(start + PAGE, len(content))
    return content[:start] + bytes(end - start) + content[end:]


def zero_tail(content: bytes, chance: random.Random) -> bytes:
    """Zeros from some place to the end, as after a loss of power."""
    start = chance.randrange(len(content))
    return content[:start] + bytes(len(content) - start)


KINDS: dict[str, tuple[Callable[[bytes, random.Random], bytes], int]] = {
    "cuts": (cut, CUTS),
    "flipped bits": (flip, FLIPS),
    "pages of zeros": (zero_page, PAGES),
    "tails of zeros": (zero_tail, TAILS),
}


@dataclass(frozen=True)
class Target:
    """A file that is damaged. notices: what is wrong with how the damage is met, in words; "" if it is refused."""

    path: Path
    notices: Callable[[], str]


def refuses(loader: Callable[[], Any], code: int) -> str:
    """ "" if loading raises the UserError with this code."""
    try:
        loader()
    except UserError as error:
        return "" if error.code == code else f"refused with exit code {error.code}: {error.what}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def newest_is_refused(folder: Path, step: int, before: int) -> str:
    """ "" if the damaged checkpoint of the step is refused, and the one before it taken with a note."""
    checkpoints, notes = Checkpoints(folder), []
    if fault := refuses(lambda: checkpoints.load(step), errors.CHECKPOINT):
        return fault
    try:
        found = checkpoints.newest(notes.append)
    except UserError as error:
        return f"the checkpoint before it is not found: {error.what}"
    if found is None or found.step != before:
        return f"going on from {None if found is None else found.step}, not {before}"
    return "" if notes and str(before) in notes[0] else "nobody is told"


def targets(where: Path, case: Case) -> list[Target]:
    """A run's folder and token files, and who reads each of their files."""
    run = where / "run"
    small_runs.train(case, run)
    source = where / "text.txt"
    source.write_text("\n\n".join(f"Passage {number} of the text, and no other." for number in range(2000)))
    corpus = open_corpus(str(source), cache=where / "tokens", progress=False).folder
    checkpoints = run / CHECKPOINTS
    steps = Checkpoints(checkpoints).steps()
    newest = Checkpoints(checkpoints).path(steps[-1])
    found = [Target(path, lambda: newest_is_refused(checkpoints, steps[-1], steps[-2])) for path in newest.iterdir()]
    for name in ("config.json", "model.safetensors", "manifest.json"):
        found.append(Target(run / name, lambda: refuses(lambda: load(run), errors.CHECKPOINT)))
    for name in ("metrics.jsonl", "run.json", "summary.json"):
        found.append(Target(run / name, lambda: _verified(run)))
    for path in sorted(corpus.iterdir()):
        found.append(
            Target(
                path,
                lambda: refuses(lambda: open_corpus(str(source), cache=where / "tokens", progress=False), errors.DATA),
            )
        )
    return found


def _verified(run: Path) -> str:
    from hectogpt.cli.check_run import verify_run

    return "" if any(check.problem for check in verify_run(run)) else "found sound"


def damage(kind: str, number: int, found: list[Target]) -> str:
    """Damage one of the files, and put it right again. What is wrong with how that was met, "" if nothing."""
    chance = random.Random(f"{kind} {number}")
    target = found[number % len(found)]
    content = target.path.read_bytes()
    changed = content
    while changed == content:  # a page that was zero before, say
        changed = KINDS[kind][0](content, chance)
    target.path.write_bytes(changed)
    try:
        fault = target.notices()
    finally:
        target.path.write_bytes(content)
    return f"{kind[:-1]} in {target.path.name}: {fault}" if fault else ""


def damaged(where: Path, case: Case, counts: dict[str, int]) -> Line:
    """The line of so many damages of each kind. Each worker has a run of its own."""
    begun = time.monotonic()
    tries = [(kind, number) for kind, count in counts.items() for number in range(count)]

    def work(worker: int) -> list[str]:
        found = targets(where / f"damage {worker}", case)
        faults = [f"{target.path.name} is refused though it is sound" for target in found if not target.notices()]
        return faults + [fault for which in tries[worker :: forks.WORKERS] if (fault := damage(*which, found))]

    for worker in range(forks.WORKERS):
        (where / f"damage {worker}").mkdir()
    faults = [fault for some in forks.spread(work, range(forks.WORKERS)) for fault in some]
    return forks.line("damage", len(tries), faults, begun, "0 loaded")


def check(quick: bool) -> list[Line]:
    """All lines. quick: a tenth of the tries."""
    with small_runs.place(4) as (where, cases):
        return [damaged(where, cases["plain"], {kind: QUICK if quick else count for kind, (_, count) in KINDS.items()})]
