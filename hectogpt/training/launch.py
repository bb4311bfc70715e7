"""How a run that several processes share is started, and how it fails: reads the environment, loads no torch.

status.json in the run's folder has what ended the last attempt. It goes when the run goes on.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.files import write_atomic

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """What torchrun tells a process. attempt: how often all processes were started again. agent: whether torchrun keeps
    the store, and not rank 0."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    attempt: int
    agent: bool


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """How this process was started; None for one alone. Raises UserError for numbers that are none."""
    if not all(name in environment for name in VARIABLES):
        return None
    try:
        rank, size, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        local_size = int(environment.get("LOCAL_WORLD_SIZE", "1"))
        attempt = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except ValueError as error:
        raise UserError(f"{', '.join(VARIABLES)}: {error}", fix="start the processes by torchrun") from None
    if not 0 <= rank < size:
        raise UserError(f"RANK = {rank} with WORLD_SIZE = {size}", fix="start the processes by torchrun")
    agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(rank, size, local_rank, local_size, environment["MASTER_ADDR"], port, attempt, agent)


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


class DisagreementError(UserError):
    """The processes of a run do not have the same run. All of them raise it."""


def describe_odd(name: str, odd: list[int], told: dict[int, str]) -> DisagreementError:
    """The error that names who differs in what. told: the value of one usual rank and of the first odd one."""
    (usual, one), (other, two) = ((rank, json.loads(text)) for rank, text in told.items())
    differing = list(_differences(one, two, ""))
    shown = [f"{p or name}: {_brief(a)} at rank {usual}, {_brief(b)} at rank {other}" for p, a, b in differing[:3]]
    shown += [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
    ranks = f"rank {odd[0]}" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))}"
    return DisagreementError(
        f"{ranks} differ{'s' if len(odd) == 1 else ''} from rank {usual} in the {name}",
        why="; ".join(shown),
        fix="the same installation, command, files and threads for all processes",
        kept="nothing was written",
    )


def _differences(one: Any, two: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, dict) and isinstance(two, dict):
        for name in sorted(one.keys() | two.keys()):
            yield from _differences(one.get(name), two.get(name), f"{path}.{name}" if path else name)
    elif one != two:
        yield path, one, two


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    return text[:12] if len(text) == 64 else text[:60]
