"""How a run that several processes share fails: the errors, status.json in its folder, a limit for what never answers.

status.json tells what ended the last attempt. It is there only after a failure, and goes when the run goes on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import write_atomic

T = TypeVar("T")

STATUS = "status.json"


class PeerError(UserError):
    """Another process of the run has failed, so this one cannot go on. failure: which, and of what."""

    def __init__(self, failure: dict[str, Any], size: int) -> None:
        rank, step = failure["rank"], failure["step"]
        who = "a process" if rank is None else f"rank {rank}"
        super().__init__(
            f"{who} of the run's {size} processes failed {f'in step {step}' if step else 'before the first step'}",
            why=str(failure["cause"]),
            fix="the same command with resume set to the run's folder; torchrun starts it again by itself, as often as "
            "its max-restarts says",
            code=errors.PEER,
        )
        self.failure = failure


class NotJoinedError(UserError):
    """This process has not found the others, so it cannot leave it to rank 0 to say why."""


def write_status(folder: Path, failure: Mapping[str, Any], processes: int, attempt: int) -> None:
    """Write the first failure of an attempt: its rank (None: not known), its cause, and the step it happened in."""
    record = {"state": "failed", "processes": processes, "attempt": attempt, **failure}
    with suppress(OSError, UserError):  # the disk may be what has failed
        if folder.is_dir():
            write_atomic(folder / STATUS, json.dumps(record, indent=2, allow_nan=False) + "\n")


def clear_status(folder: Path) -> None:
    """Remove the failure of an earlier attempt."""
    with suppress(OSError):
        (folder / STATUS).unlink(missing_ok=True)


def within(seconds: float, work: Callable[[], T]) -> T:
    """What the work returns. Raises RuntimeError if it takes longer: on a dead link the store never answers."""
    found: list[T] = []
    failed: list[BaseException] = []

    def do() -> None:
        try:
            found.append(work())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise RuntimeError(f"no answer within {seconds:g} s")
    return found[0]
