"""How a run that several processes share is started, and how it fails: the environment, the errors."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from hectogpt import errors
from hectogpt.errors import UserError
from hectogpt.serialization import diff

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """What torchrun's environment says of a process. attempt: how often all processes were started again. agent:
    whether torchrun keeps the store, and not rank 0."""

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


class DisagreementError(UserError):
    """The processes of a run do not have the same run. All of them raise it."""


class PeerError(UserError):
    """Another process of the run has failed, so this one cannot go on. step: from 1; 0 before the first."""

    def __init__(self, cause: str, step: int, size: int) -> None:
        super().__init__(
            f"another of the run's {size} processes failed {f'in step {step}' if step else 'before the first step'}",
            why=f"{cause}; what that process printed, or torchrun's report, says more",
            fix="the same command, with the run's folder as resume; torchrun starts it again by itself, as often as "
            "its max-restarts says",
            code=errors.PEER,
        )


def within(seconds: float, work: Callable[[], T]) -> T:
    """What the work returns. Raises RuntimeError if it takes longer: on a dead link the store never answers."""
    found: list[T] = []
    failed: list[Exception] = []

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


def describe_odd(texts: list[dict[str, Any]]) -> DisagreementError:
    """The error that names who differs in what. texts: the facts of every rank, of which two differ."""
    name = next(name for name in texts[0] if any(its.get(name) != texts[0][name] for its in texts))
    rank = next(rank for rank, its in enumerate(texts) if its.get(name) != texts[0][name])
    differing = [
        f"{path or name}: {_brief(one)} at rank 0, {_brief(other)} at rank {rank}"
        for path, (one, other) in diff(texts[0][name], texts[rank].get(name)).items()
    ]
    more = [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
    return DisagreementError(
        f"rank {rank} differs from rank 0 in the {name}",
        why="; ".join(differing[:3] + more),
        fix="the same installation, command, files and threads for all processes",
        kept="nothing was written",
    )


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    return text[:12] if len(text) == 64 else text[:60]
