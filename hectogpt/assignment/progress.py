"""Measure a student's progress: run the tests of a kit, part by part, in a child process.

A test is a function in tests/test_PART.py whose name begins with `test_`; pytest is not needed. An
exercise that is still a stub raises NotImplementedError with its name.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hectogpt.assignment.parts import BY_NAME, SOURCES
from hectogpt.errors import DataError, UserError
from hectogpt.process import Child, answer

TOGETHER = "together"  # the tests of all parts at once
LIMIT = 60.0  # seconds for the tests of one part, which usually take a few
STUB = re.compile(r"exercise (\w+): ")


@dataclass(frozen=True)
class Progress:
    """The state of a part.

    part: its name.
    state: "passed", "failed", "not started", or "waiting" if a part that it needs is a stub.
    why: the reason, on one line.
    """

    part: str
    state: str
    why: str = ""

    @property
    def points(self) -> int:
        """The points that the part is worth."""
        return BY_NAME[self.part].points if self.part in BY_NAME else 0


def tested_parts(folder: Path) -> list[str]:
    """Return the parts that a kit has tests for, in the assignment's order, then `together`.

    Raises UserError for a folder that is not a kit.
    """
    missing = [name for name in SOURCES if not (folder / name).is_file()]
    names = [
        name for name in (*BY_NAME, TOGETHER) if (folder / "tests" / f"test_{name}.py").is_file()
    ]
    if missing or not names:
        raise DataError(
            f"{folder} is not a kit of the assignment",
            why=f"it lacks {', '.join(missing or ['tests/test_*.py'])}",
            fix="`hectogpt assignment DIR` writes one to a new folder",
        )
    return names


def check_kit(
    folder: Path, tell: Callable[[Progress], None], limit: float = LIMIT
) -> list[Progress]:
    """Run the tests of a kit. Return the state of each part.

    If the child ends or hangs, the part that it was testing counts as failed, and a new child
    continues with the next part.

    Args:
        folder: the folder of the kit.
        tell: called with each state as soon as it is known.
        limit: seconds for each part.

    Raises UserError for a folder that is not a kit, and if the tests cannot be started.
    """
    folder = folder.resolve()
    names = tested_parts(folder)
    found = list[Progress]()
    ready = False

    def note(progress: Progress) -> None:
        found.append(progress)
        tell(progress)

    def on_frame(message: dict[str, Any], _: bytes) -> None:
        nonlocal ready
        ready = True
        if message:
            note(Progress(**message))

    while left := names[len(found) :]:
        request = {"folder": str(folder), "parts": left}
        ready = False
        ending = Child("hectogpt.assignment.progress").listen(
            request, on_frame, first_seconds=LIMIT, seconds=limit
        )
        if not ready:
            raise UserError(
                "the tests did not start",
                why=(ending.last_words.splitlines() or [ending.error or "no reason is known"])[-1],
                fix="pip install torch numpy einops jaxtyping matplotlib tqdm",
            )
        if left := names[len(found) :]:
            ended = f"the process ended: {ending.error or 'exit code 0'}"
            note(
                Progress(
                    left[0],
                    "failed",
                    f"not done after {limit:g} s" if ending.how == "late" else ended,
                )
            )
    return found


# --- in the child


def reply(request: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Yield an empty message before the first part, then {part, state, why} for each part.

    request: {"folder": the folder of the kit, "parts": names}.
    """
    folder = Path(request["folder"])
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(folder), str(folder / "tests")]
    import torch

    torch.set_num_threads(1)
    yield {}
    for part in request["parts"]:
        state, why = run_part(folder, part)
        yield {"part": part, "state": state, "why": why}


def run_part(folder: Path, part: str) -> tuple[str, str]:
    """Run the tests of a part. Return its state, and the first reason why it has not passed.

    If the only tests that fail go beyond the course's own tests, the part has passed, and the
    reason is a note.
    """
    import torch

    beyond = False
    try:
        module = importlib.import_module(f"test_{part}")
        tests = [
            test
            for name, test in vars(module).items()
            if name.startswith("test_") and callable(test)
        ]
        for test in sorted(tests, key=lambda test: hasattr(test, "beyond")):
            beyond = hasattr(test, "beyond")
            test()
    except BaseException as error:  # also SystemExit and the like, which the tested code may raise
        stub = STUB.match(str(error)) if isinstance(error, NotImplementedError) else None
        if stub:
            return ("not started", "") if stub[1] == part else ("waiting", f"for {stub[1]}")
        if beyond:
            return "passed", f"note, beyond the course's tests: {describe(error, folder)}"
        return "failed", describe(error, folder)
    finally:
        torch.set_grad_enabled(True)  # the tested code may have left gradients off
    return "passed", ""


def describe(error: BaseException, folder: Path) -> str:
    """Return the first line of an error, and the place in the kit where it was raised.

    If an assertion of the tests has failed, leave out the place.
    """
    first = next(iter(str(error).splitlines()), "")
    frames = [
        (Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)
    ]
    if isinstance(error, AssertionError) and frames and frames[-1][0].parent == folder / "tests":
        return first
    own = [f" ({file.name}, line {line})" for file, line in frames if file.parent == folder]
    words = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return words + "".join(own[-1:])


if __name__ == "__main__":
    answer(reply)
