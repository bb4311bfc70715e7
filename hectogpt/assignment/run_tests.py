"""The child's side of a check: runs the tests of a kit, part after part. They need no pytest.

A test is a function whose name begins with `test_`, in tests/test_PART.py. An exercise that is still a stub raises
NotImplementedError with its name, and is recognised by it.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STUB = re.compile(r"exercise (\w+): ")


def reply(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """For each part a message when it begins and one when it has ended: part, state, why.

    request: folder of the kit, parts, limit in seconds for each part. After the limit the process ends, and where it
    was is in its last words.
    """
    folder = Path(request["folder"])
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(folder), str(folder / "tests")]
    import torch

    torch.set_num_threads(1)
    for part in request["parts"]:
        yield {"part": part, "state": "begun", "why": ""}
        faulthandler.dump_traceback_later(request["limit"], exit=True)
        state, why = run_part(folder, part)
        faulthandler.cancel_dump_traceback_later()
        yield {"part": part, "state": state, "why": why}


def run_part(folder: Path, part: str) -> tuple[str, str]:
    """State of a part, passed, failed, not started or waiting, and the first reason why it has not passed. A failure
    beyond the course's tests is a note on a part that has passed."""
    beyond = False
    try:
        file = folder / "tests" / f"test_{part}.py"
        spec = importlib.util.spec_from_file_location(f"test_{part}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        tests = [test for name, test in vars(module).items() if name.startswith("test_") and callable(test)]
        for test in sorted(tests, key=lambda test: hasattr(test, "beyond")):
            beyond = hasattr(test, "beyond")
            test()
    except BaseException as error:  # SystemExit and the like too: they come from the code that is tested
        stub = STUB.match(str(error)) if isinstance(error, NotImplementedError) else None
        if stub is None and beyond:
            return "passed", f"note, beyond the course's tests: {describe(error, folder)}"
        if stub is None:
            return "failed", describe(error, folder)
        if stub[1] == part:
            return "not started", ""
        return "waiting", f"for {stub[1]}"
    return "passed", ""


def describe(error: BaseException, folder: Path) -> str:
    """The first line of an error, and where it was raised, unless a test raised it to say what is wrong."""
    first = next(iter(str(error).splitlines()), "")
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == folder]
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AssertionError) and frames and Path(frames[-1].filename).parent == folder / "tests":
        return first
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {first}{where}" if first else f"{type(error).__name__}{where}"


if __name__ == "__main__":
    from hectogpt.process import answer

    answer(reply)
