"""How this process was started: alone, or by torchrun as one of several. Reads the environment; loads no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hectogpt.errors import UserError

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
