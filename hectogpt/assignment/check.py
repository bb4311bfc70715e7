"""How far a student is: the tests of a kit, run in a child process, and a state for every part."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hectogpt import errors
from hectogpt.assignment.kit import SOURCES
from hectogpt.assignment.parts import BY_NAME, PARTS
from hectogpt.errors import UserError
from hectogpt.process import Outcome, ask

TOGETHER = "together"  # the tests of all parts at once
LIMIT = 60.0  # seconds for one part's tests, which take a few


@dataclass(frozen=True)
class Progress:
    """The state of a part: passed, failed, not started, or waiting for another part; and why, in a line."""

    part: str
    state: str
    why: str = ""

    @property
    def points(self) -> int:
        """Points that the part is worth."""
        return BY_NAME[self.part].points if self.part in BY_NAME else 0


def find_parts(folder: Path) -> list[str]:
    """The parts that a kit has tests for, in the assignment's order, and `together`. Raises UserError for no kit."""
    missing = [name for name in SOURCES if not (folder / name).is_file()]
    names = [name for name in (*(part.name for part in PARTS), TOGETHER) if test_file(folder, name).is_file()]
    if missing or not names:
        raise UserError(
            f"{folder} is no kit of the assignment",
            why=f"it lacks {', '.join(missing or ['tests/test_*.py'])}",
            fix="`hectogpt assignment DIR` writes one to a new folder",
            code=errors.DATA,
        )
    return names


def test_file(folder: Path, part: str) -> Path:
    """Where a part's tests are."""
    return folder / "tests" / f"test_{part}.py"


def check_kit(folder: Path, tell: Callable[[Progress], None], limit: float = LIMIT) -> list[Progress]:
    """The state of each part of a kit, told as soon as it is known. Raises UserError for a folder that is no kit.

    The tests run in a child process. Where that ends or hangs, the part that it was at has failed, and another child
    goes on with the next one. limit: seconds for each part.
    """
    folder = folder.resolve()
    found: list[Progress] = []
    begun: list[str] = []

    def note(progress: Progress) -> None:
        found.append(progress)
        tell(progress)

    def on_message(message: dict[str, Any]) -> None:
        begun.append(str(message["part"]))
        if message["state"] != "begun":
            note(Progress(str(message["part"]), str(message["state"]), str(message["why"])))

    names = find_parts(folder)
    while left := names[len(found) :]:
        begun.clear()
        request = {"folder": str(folder), "parts": left, "limit": limit}
        outcome = ask("hectogpt.assignment.run_tests", request, on_message, limit * (len(left) + 1))
        if not begun:
            raise UserError(
                "the tests did not start",
                why=last_line(outcome),
                fix="pip install torch numpy einops jaxtyping matplotlib tqdm",
            )
        if left := names[len(found) :]:
            note(Progress(left[0], "failed", cut_short(outcome, folder, limit)))
    return found


def cut_short(outcome: Outcome, folder: Path, limit: float) -> str:
    """Why a child ended in the middle of a part."""
    if "Timeout (" not in outcome.last_words:
        return f"the process ended: {outcome.error or 'exit code 0'}"
    places = re.findall(r'File "([^"]+)", line (\d+)', outcome.last_words.rpartition("Timeout (")[2])
    own = [(Path(file).name, line) for file, line in places if Path(file).parent == folder]
    where = f", at {own[0][0]}, line {own[0][1]}" if own else ""
    return f"not done after {limit:g} s{where}"


def last_line(outcome: Outcome) -> str:
    """The end of what a child had to say."""
    return (outcome.last_words.splitlines() or [outcome.error or "no reason is known"])[-1]
